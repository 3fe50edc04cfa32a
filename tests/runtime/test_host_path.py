"""What a step leaves out on the host, counted: nothing here is timed."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph import ops
from dit_cachegraph.models import REGISTRY
from support.toy_dits import gated_dit
from support.toy_runs import compile_toy, run, toy_steps

LONG = [90.0 - 5 * i for i in range(8)]


def calls_of(function) -> Counter:
    """How often functions of Python of each name run."""
    names = Counter()
    sys.setprofile(
        lambda frame, event, _: names.update([frame.f_code.co_name]) if event == "call" else None
    )
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


def usual_step(model: nn.Module, **settings: object) -> Counter:
    """The calls of one step in the middle of an image."""
    torch._dynamo.reset()
    compiled = compile_toy(model, **settings)
    *before, last = toy_steps(LONG)
    for inputs in before:
        run(compiled, inputs)
    return calls_of(lambda: run(compiled, last))


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_usual_step_compares_its_latents_once(threshold):
    """They are compared to the last bit where the timestep has not moved alone."""
    calls = usual_step(gated_dit(4), residual_diff_threshold=threshold)
    assert calls["closeness"] == 1
    assert calls["array_equal"] == 0


def test_what_a_rule_needs_is_asked_once_a_plan():
    assert usual_step(gated_dit(4), residual_diff_threshold=1.0)["needs"] == 0


def test_a_hit_costs_the_same_calls_at_any_depth():
    """But for what Dynamo does in C: nothing of ours goes over blocks that are skipped."""
    few, many = (
        sum(usual_step(gated_dit(n), residual_diff_threshold=1.0).values()) for n in (4, 16)
    )
    assert few == many


def test_what_runs_uncached_looks_at_no_more_weights_the_more_it_has():
    def looks(num_blocks):
        torch._dynamo.reset()
        compiled = compile_toy(gated_dit(num_blocks))
        asked = Counter()

        def note(frame, event, called):
            if event == "c_call" and called is isinstance:
                asked.update([Path(dc.__file__).parent in Path(frame.f_code.co_filename).parents])

        with torch.enable_grad(), pytest.warns(dc.NotCachedWarning, match="gradients on"):
            first, *_, last = toy_steps(LONG)
            compiled(**first)
        with torch.enable_grad():
            sys.setprofile(note)
            compiled(**last)
            sys.setprofile(None)
        return asked[True]

    assert looks(4) == looks(16) > 0


def test_a_hit_goes_on_with_the_very_state_that_it_used():
    """So that nothing is counted anew of what is held."""
    model = gated_dit(4)
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    states = []
    for inputs in toy_steps(LONG):
        run(compiled, inputs)
        requests = REGISTRY.of_module(model).requests
        states.append(next(requests.held.least_recent()).state)
    first, *others = states
    assert first is not None
    assert all(state is first for state in others)


def test_numbers_of_the_caller_are_read_as_they_were_when_the_copy_began():
    timestep, own = torch.tensor([7.0]), torch.tensor([3.0])
    copy = ops.HostCopy([own])
    copy.add([timestep], are_callers=True)
    timestep.fill_(1.0)
    assert [number.item() for number in copy.read()] == [3.0, 7.0]
    assert copy.read()[0] is own
