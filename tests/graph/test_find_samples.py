"""Where the samples of a batch lie, and which blocks may be run for some of them: those that treat
each row by itself, as far as the graph shows it."""

import pytest
import torch
from torch import nn

from dit_cachegraph.backend import cut_graph
from dit_cachegraph.graph.cut.find_samples import FIXED
from support.toy_dits import (
    DIM,
    NUM_TOKENS,
    GatedBlock,
    SlicedTembDiT,
    ToyDiT,
    TwoListDiT,
    gated_dit,
    toy_inputs,
    writing_dit,
)


@pytest.fixture(autouse=True)
def each_alone():
    torch._dynamo.reset()


def samples_of(model, *, is_free=True):
    """Those of the graph that Dynamo makes of a batch of 3, which is a number or free."""
    cuts = []

    def backend(gm, _):
        cuts.append(cut_graph(gm))
        return gm

    inputs = toy_inputs(30.0, batch=3)
    if is_free:
        for value in inputs.values():
            torch._dynamo.mark_dynamic(value, 0)
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs)
    (cut,) = cuts
    return cut.trunk.samples


def why_whole(write):
    """Why blocks that do `write(h, step * temb)` can't run for some samples; None if they can."""
    samples = samples_of(writing_dit(write))
    assert samples.why_together is None
    return samples.why_whole


@pytest.mark.parametrize(
    "model",
    [gated_dit(3), TwoListDiT(2, 2), SlicedTembDiT([GatedBlock() for _ in range(3)])],
    ids=["gated", "two lists", "sliced embedding"],
)
def test_blocks_that_treat_each_row_by_itself(model):
    samples = samples_of(model)
    assert samples.why_whole is None
    assert samples.why_together is None
    assert samples.rows
    assert samples.sizes


INNOCENT = {
    "folded, and back": lambda h, x: (h.reshape(-1, DIM) * 2).reshape(-1, NUM_TOKENS, DIM) + x,
    "heads first": lambda h, x: (
        h.unflatten(-1, (2, -1)).transpose(1, 2).transpose(1, 2).flatten(2) + x
    ),
    "a mean of tokens": lambda h, x: h - h.mean(1, keepdim=True) + x,
    "tokens in another order": lambda h, x: h.flip(1) + x,
    "tokens that are picked": lambda h, x: h[:, torch.arange(NUM_TOKENS - 1, -1, -1)] + x,
    "one table for all": lambda h, x: h + torch.ones(1, NUM_TOKENS, 1).expand(len(h), -1, -1) + x,
    "softmax of channels": lambda h, x: h.softmax(-1) + x,
    "a whole matrix a sample": lambda h, x: torch.bmm(h, h.transpose(1, 2)) @ h + x,
}
MIXING = {
    "a mean of samples": lambda h, x: h - h.mean(0) + x,
    "a mean that keeps its place": lambda h, x: h - h.mean(0, keepdim=True) + x,
    "one of them": lambda h, x: h + h[0] + x,
    "in another order": lambda h, x: h.flip(0) + x,
    "picked by a tensor": lambda h, x: h[torch.arange(len(h))] + x,
    "moved on": lambda h, x: torch.roll(h, 1, 0) + x,
    "moved on as one row": lambda h, x: torch.roll(h, 1) + x,
    "summed up": lambda h, x: h.cumsum(dim=0) + x,
    "softmax of samples": lambda h, x: h.softmax(0) + x,
    "softmax of samples, from behind": lambda h, x: h.softmax(-3) + x,
    "by their places": lambda h, x: h + torch.arange(len(h))[:, None, None] + x,
    "tokens first": lambda h, x: (h.transpose(0, 1) * 2).transpose(0, 1) + x,
    "one row after the other": lambda h, x: torch.cat([h, h], 0)[: len(h)] + x,
    "attention over all of them": lambda h, x: (
        nn.functional.scaled_dot_product_attention(*[h.reshape(1, -1, DIM)] * 3).reshape(h.shape)
        + x
    ),
    "all values": lambda h, x: nn.functional.layer_norm(h, h.shape) + x,
}


@pytest.mark.parametrize("write", INNOCENT.values(), ids=INNOCENT)
def test_what_keeps_rows_apart(write):
    assert why_whole(write) is None


@pytest.mark.parametrize("write", MIXING.values(), ids=MIXING)
def test_what_may_mix_them_is_named(write):
    assert "test_find_samples.py:" in why_whole(write)


def test_an_operator_that_is_none_of_torch_may_mix_them():
    @torch.library.custom_op("test_find_samples::twice", mutates_args=())
    def twice(h: torch.Tensor) -> torch.Tensor:
        return h * 2

    twice.register_fake(torch.empty_like)
    assert "no operation of torch's own" in why_whole(lambda h, x: twice(h) + x)


def test_a_number_has_rows_and_runs_whole():
    samples = samples_of(gated_dit(3), is_free=False)
    assert samples.why_whole == FIXED
    assert samples.why_together is None
    assert samples.rows


class FoldedDiT(ToyDiT):
    """Its blocks hand on tokens of all samples in one dimension."""

    def trunk(self, h, temb, e):
        h, temb = h.flatten(0, 1), temb.expand(-1, NUM_TOKENS, -1).flatten(0, 1)
        for block in self.blocks:
            h = block(h, temb)
        return h.reshape(-1, NUM_TOKENS, DIM)


@pytest.mark.parametrize("is_free", [True, False])
def test_samples_that_are_folded_can_not_be_told_apart(is_free):
    samples = samples_of(FoldedDiT([GatedBlock() for _ in range(3)]), is_free=is_free)
    assert "doesn't have the batch first" in samples.why_together
