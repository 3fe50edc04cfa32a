"""A step calls Inductor's code itself, and AOTAutograd's wrapper where that has something to do."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from support.halved_weight import halve
from support.toy_dits import GatedBlock, ToyDiT, gated_dit, toy_inputs
from support.toy_runs import compile_toy, run, toy_steps

INDUCTOR = {"inner_backend": "inductor", "residual_diff_threshold": 0.0}
NUM_SEGMENTS = 6  # of four blocks


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet():
    torch._dynamo.reset()


def calls_in_a_step(compiled: nn.Module, inputs) -> Counter:
    """How often functions of a name, and those of a file, run in one call."""
    names = Counter()

    def note(frame, event, _):
        if event == "call":
            names[frame.f_code.co_name] += 1
            names[Path(frame.f_code.co_filename).name] += 1

    sys.setprofile(note)
    try:
        run(compiled, inputs)
    finally:
        sys.setprofile(None)
    return names


def test_blocks_are_called_without_a_wrapper():
    model = gated_dit(4)
    compiled = compile_toy(model, **INDUCTOR)
    first, second, third = toy_steps([90.0, 60.0, 30.0])
    for inputs in (first, second):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    calls = calls_in_a_step(compiled, third)
    assert calls["runtime_wrapper"] == 0
    assert calls["calling.py"] == 0
    # That of a segment, and Inductor's own; and Inductor's of the diff.
    assert calls["call"] == 2 * NUM_SEGMENTS + 1


class WritingEnds(ToyDiT):
    """Writes to the latents that it was given before the blocks, and returns them after."""

    def forward(self, hidden_states, timestep, encoder_hidden_states=None):
        h, temb = self.proj_in(hidden_states), self.embed(timestep)
        hidden_states.add_(1)
        h = self.proj_out(self.trunk(h, temb, None))
        hidden_states.mul_(2)
        return h, hidden_states, hidden_states.view(-1)


def test_writes_and_views_of_arguments_are_what_they_are():
    model = WritingEnds([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model, **INDUCTOR)
    for timestep in (90.0, 60.0):
        inputs, expected = toy_inputs(timestep), toy_inputs(timestep)
        latents = inputs["hidden_states"]
        with torch.no_grad():
            num_writes = latents._version
            result, same, view = compiled(**inputs)
            wanted, *_ = model(**expected)
        torch.testing.assert_close(result, wanted)
        torch.testing.assert_close(latents, expected["hidden_states"])
        assert same is latents
        assert view.data_ptr() == latents.data_ptr() and view.shape == (latents.numel(),)
        assert latents._version > num_writes


def test_under_autocast_the_wrapper_turns_it_off():
    model = gated_dit(4)
    compiled = compile_toy(model, **INDUCTOR)
    first, second = toy_steps([90.0, 60.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for inputs in (first, second):
            torch.testing.assert_close(
                run(compiled, inputs), run(model, inputs), rtol=2e-2, atol=2e-2
            )
        assert calls_in_a_step(compiled, first)["runtime_wrapper"] >= 5


@pytest.mark.slow
def test_sizes_that_vary():
    model = gated_dit(4)
    compiled = compile_toy(model, dynamic=True, **INDUCTOR)
    for batch in (2, 3, 5):
        inputs = toy_inputs(60.0, batch=batch)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    calls = calls_in_a_step(compiled, toy_inputs(30.0, batch=4))
    assert calls["runtime_wrapper"] == 1  # the epilogue's
    (graph,) = dc.summary(compiled).graphs
    assert graph.num_blocks == 4


def test_subclasses_of_tensors_are_unwrapped():
    model, plain = gated_dit(4), gated_dit(4)
    halve(model)
    compiled = compile_toy(model, **INDUCTOR)
    first, second, third = toy_steps([90.0, 60.0, 30.0])
    for inputs in (first, second):
        torch.testing.assert_close(run(compiled, inputs), run(plain, inputs))
    # Prologue, epilogue and diff have none of them.
    assert calls_in_a_step(compiled, third)["runtime_wrapper"] == 4
