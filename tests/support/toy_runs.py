"""How the toys are compiled and called, and what holds for every toy that is cached."""

import re
import warnings
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.report import GraphReport
from support.toy_dits import toy_inputs

NUM_WATCHED = 4  # Blocks with a graph each: the first call compiles, three are watched.


def compile_toy(model: nn.Module, dynamic: bool | None = None, **settings: object) -> nn.Module:
    """Compiled for tests: one first block, no warm-up, whatever `settings` don't say otherwise."""
    options = {"inner_backend": "eager", "Fn_compute_blocks": 1, "max_warmup_steps": 0, **settings}
    return torch.compile(model, backend="cachedit", options=options, dynamic=dynamic)


def toy_steps(timesteps: Sequence[float]) -> list[dict[str, Tensor]]:
    """Inputs of the steps of one image: latents that move a little, and the very same text."""
    first, last = toy_inputs(0.0), toy_inputs(0.0, seed=1)
    return [
        {
            **toy_inputs(timestep),
            "hidden_states": torch.lerp(first["hidden_states"], last["hidden_states"], i / 10),
            "encoder_hidden_states": first["encoder_hidden_states"],
        }
        for i, timestep in enumerate(timesteps)
    ]


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """One seeded call; the latents are cloned, the text keeps its identity."""
    torch.manual_seed(1)
    return model(**{**inputs, "hidden_states": inputs["hidden_states"].clone()})


def once_more(inputs: dict[str, object]) -> dict[str, object]:
    """The inputs of a step that is evaluated a second time: its latents differ in their last bit.
    The very same latents would be those of another guidance pass."""
    latents = inputs["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    return {**inputs, "hidden_states": latents * (1 - torch.finfo(latents.dtype).eps)}


def assert_cached(model: nn.Module, dynamic: bool | None = None, **settings: object) -> GraphReport:
    """`model` is cut and not refused; with threshold 0 it gives what eager gives; a hit on inputs
    that did not change gives what computing them gave. Returns the report of its one graph."""
    steps = toy_steps([90.0, 60.0, 30.0])
    compiled = compile_toy(model, dynamic, residual_diff_threshold=0.0, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dc.NotCachedWarning)
        for inputs in steps:
            torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=0.01)
    # The first repeat of a first timestep would begin a new image, so the second step is repeated.
    repeated = once_more(steps[1])
    for inputs in (steps[0], steps[1], repeated):
        actual = run(compiled, inputs)
    report = dc.summary(compiled)
    last = report.steps[-1]
    assert last.hit and last.diff == pytest.approx(0.0, abs=1e-6), last.reason
    torch.testing.assert_close(actual, run(model, repeated))
    assert report.refusals == ()
    (graph,) = report.graphs
    return graph


def assert_refused(model: nn.Module, sentence: str, dynamic: bool | None = None) -> None:
    """The sentence is warned and reported, and no step is cached; the output is eager's."""
    compiled = compile_toy(model, dynamic, residual_diff_threshold=1.0)
    first, second = toy_steps([90.0, 89.0])
    with pytest.warns(dc.NotCachedWarning, match=sentence):
        actual = run(compiled, first)
    torch.testing.assert_close(actual, run(model, first))
    torch.testing.assert_close(run(compiled, second), run(model, second))
    report = dc.summary(compiled)
    assert any(re.search(sentence, refusal) for refusal in report.refusals), report
    assert re.search(sentence, str(report))
    assert (report.num_hits, report.num_computed) == (0, 0)
