"""Experts of diffusers that are kept whole, beyond what holds for every entry of the zoo: decisions
are the oracle's, also under Inductor, and what is split by the numbers of a tensor is kept too."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_nucleusmoe_image import SwiGLUExperts
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.testing.run import call
from oracles.dbcache import EagerOracle
from zoo.checks import compiled_entry, levels_of
from zoo.entries import ENTRIES
from zoo.entry import Entry, Inputs

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_STEPS = 12
# Single blocks alone: the double ones hand on two streams, and the single ones both of them in one.
SINGLE = {"num_layers": 0, "num_single_layers": 4, "llama_layers": [0] * 4}


def entry_of(name: str) -> Entry:
    return next(entry for entry in ENTRIES if entry.name == name)


def with_one_caption(model: nn.Module) -> nn.Module:
    """Every block's text is projected alike: the oracle's stream has it in, and ours has not."""
    first, *others = model.caption_projection
    for other in others:
        other.load_state_dict(first.state_dict())
    return model


@torch.no_grad()
def test_decisions_and_outputs_equal_the_oracle() -> None:
    entry = replace(entry_of("hidream"), depths=SINGLE)
    model = with_one_caption(entry.build())
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.05}
    oracle = EagerOracle(
        model,
        ("single_stream_blocks",),
        {"single_stream_blocks": ("hidden_states",)},
        **settings,
    )
    with entry.keep_whole():
        compiled = compiled_entry(entry, model)
        dc.configure(compiled, **settings)
        for inputs in entry.steps(model, levels_of(entry, NUM_STEPS)):
            expected = oracle.step(**inputs)
            torch.testing.assert_close(compiled(**inputs)[0], expected.output)
            last = dc.summary(compiled).steps[-1]
            assert last.hit == expected.hit
    assert dc.summary(compiled).num_hits == 5


def assert_exact_then_reused(
    compiled: nn.Module, model: nn.Module, steps: Sequence[Inputs]
) -> None:
    """All steps but the last at threshold 0, the last one with the widest."""
    *first, last = steps
    for inputs in first:
        torch.testing.assert_close(call(compiled, inputs), call(model, inputs))
    dc.configure(compiled, residual_diff_threshold=1.0)
    call(compiled, last)
    report = dc.summary(compiled)
    assert (report.refusals, report.num_hits) == ((), 1)


@torch.no_grad()
def test_under_inductor() -> None:
    """A batch of two; exact where nothing is reused, then reused."""
    entry = entry_of("hidream")
    model = entry.build()
    options = {"residual_diff_threshold": 0.0, "max_warmup_steps": 0, "Fn_compute_blocks": 1}
    steps = list(entry.steps(model, levels_of(entry, 3)))
    with entry.keep_whole():
        compiled = torch.compile(model, backend="cachedit", fullgraph=True, options=options)
        assert_exact_then_reused(compiled, model, steps)


def as_its_tokens(x: Tensor, num_tokens_per_expert: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
def test_experts_that_are_split_by_numbers_of_a_tensor(dynamic: bool) -> None:
    entry = entry_of("nucleus")
    model = entry.build()
    steps = list(entry.steps(model, levels_of(entry, 3)))
    options = {"inner_backend": "eager", "residual_diff_threshold": 0.0, "max_warmup_steps": 0}
    with dc.keep_whole(SwiGLUExperts, "forward", fake=as_its_tokens):
        compiled = torch.compile(
            model, backend="cachedit", fullgraph=True, dynamic=dynamic, options=options
        )
        assert_exact_then_reused(compiled, model, steps)
