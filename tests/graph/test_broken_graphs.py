"""Graphs that break, and sizes that depend on data: what is cached, what is said of the rest."""

import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.decorators import mark_unbacked

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, ToyDiT, toy_inputs
from support.toy_runs import (
    NUM_WATCHED,
    assert_cached,
    assert_refused,
    compile_toy,
    run,
    toy_steps,
)


class Refiner(nn.Module):
    """Blocks of its own, over the text."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GatedBlock() for _ in range(2))

    def forward(self, e: Tensor, temb: Tensor) -> Tensor:
        for layer in self.layers:
            e = layer(e, temb)
        return e


class BreakingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = GatedBlock(8 * DIM)

    def forward(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.block(h, temb, e)


class RefinedDiT(ToyDiT):
    """A module of its own refines the text; the graph breaks in every block, or before them."""

    def __init__(self, breaks_in_blocks: bool) -> None:
        torch.manual_seed(0)
        make = BreakingBlock if breaks_in_blocks else lambda: GatedBlock(8 * DIM)
        super().__init__([make() for _ in range(3)])
        self.refiner = Refiner()

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        e = self.refiner(e, temb)
        torch._dynamo.graph_break()
        for block in self.blocks:
            h = block(h, temb, e)
        return h


def reports_of(model: nn.Module) -> dc.report.Report:
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        for inputs in toy_steps([90.0, 80.0, 70.0]):
            expected = run(model, inputs)
            actual = run(compiled, inputs)
            if dc.summary(compiled).num_hits == 0:
                torch.testing.assert_close(actual, expected)
    return dc.summary(compiled)


def test_refiner_is_not_cached_where_the_blocks_are_in_other_graphs() -> None:
    report = reports_of(RefinedDiT(breaks_in_blocks=True))
    assert all(graph.refusals for graph in report.graphs)
    (said,) = [r for r in report.refusals if "`blocks`, are not in this graph" in r]
    assert said.startswith("not cached: the blocks of RefinedDiT, ")
    assert "a graph break put them into others" in said


def test_refiner_in_a_fragment_of_its_own_leaves_the_blocks_cached() -> None:
    report = reports_of(RefinedDiT(breaks_in_blocks=False))
    (cached,) = [graph for graph in report.graphs if not graph.refusals]
    assert [(found.name, found.num_blocks) for found in cached.block_lists] == [("blocks", 3)]
    (said,) = [r for r in report.refusals if "are not in this graph" in r]
    assert "(at test_broken_graphs.py:" in said
    assert report.num_hits == 2


@pytest.mark.parametrize("how", ["enable_cache", "its forward"])
def test_a_fragment_before_the_blocks_where_the_forward_alone_is_compiled(how) -> None:
    """The forward isn't on the stack yet when its first graph is compiled: the timestep that this
    reads was another model's, and no step of an image was known."""
    model, every = RefinedDiT(breaks_in_blocks=False), {"residual_diff_threshold": 1.0}
    if how == "enable_cache":
        dc.enable_cache(model, Fn_compute_blocks=1, max_warmup_steps=1, **every)
    else:
        options = {"inner_backend": "eager", "max_warmup_steps": 1, **every}
        model.forward = torch.compile(model.forward, backend="cachedit", options=options)
    with torch.no_grad():
        for inputs in toy_steps([90.0, 80.0, 70.0]):
            run(model, inputs)
    assert [(s.timestep, s.hit) for s in dc.summary(model).steps] == [
        (90.0, False),
        (80.0, True),
        (70.0, True),
    ]


class BranchingDiT(ToyDiT):
    """Branches on the value of a tensor between two blocks."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i == 1 and h.sum() > 1e9:
                h = h / 2
            h = block(h, temb)
        return h


def gated_blocks(num_blocks: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(num_blocks)]


def test_place_and_reason_of_a_break() -> None:
    sentence = (
        r"have kept them out of it \(at test_broken_graphs.py:\d+: [Dd]ata-dependent branching"
    )
    compiled = compile_toy(BranchingDiT(gated_blocks(2)))
    for i in range(NUM_WATCHED):
        run(compiled, toy_inputs(90.0 - 5 * i))
    with pytest.warns(dc.NotCachedWarning, match=sentence):
        run(compiled, toy_inputs(60.0))
    refusals = dc.summary(compiled).refusals
    assert any(re.search(sentence, refusal) for refusal in refusals)
    assert any("blocks.1 reads what the first of them returned" in refusal for refusal in refusals)


class RoutingBlock(nn.Module):
    """Works on the tokens that a router picks, whatever their number."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(DIM, 1), nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        flat = h.reshape(-1, DIM)
        picked = (self.router(flat)[:, 0] > 0).nonzero()[:, 0]
        worked = torch.tanh(self.expert(flat[picked]))
        return h + temb * torch.zeros_like(flat).index_add(0, picked, worked).view_as(h)


def test_sizes_that_depend_on_data_inside_a_block() -> None:
    torch.manual_seed(0)
    with config.patch(capture_dynamic_output_shape_ops=True):
        graph = assert_cached(ToyDiT([RoutingBlock() for _ in range(4)]))
    assert (graph.num_blocks, graph.num_compiled) == (4, 3)


class Timed:
    """A context that Dynamo can't leave and enter again: it gives all of the frame up."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class TimedDiT(ToyDiT):
    """Each module is compiled alone: what makes the timestep and the latents, a list of heads,
    between which there is a sum, and blocks that break."""

    def __init__(self, num_heads: int) -> None:
        torch.manual_seed(0)
        super().__init__([RoutingBlock() for _ in range(8)])
        self.heads = nn.ModuleList(GatedBlock(2) for _ in range(num_heads))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        with Timed():
            h, temb = hidden_states, self.embed(timestep)
            for head in self.heads:
                h = h + head(h, temb)
            for block in self.blocks:
                h = block(h, temb)
            return h


@pytest.mark.parametrize("num_heads", [0, 2])
def test_the_break_is_told_before_what_other_graphs_lack(num_heads: int) -> None:
    """What was told was the first graph's, which says no place, or that of the heads."""
    compiled = compile_toy(TimedDiT(num_heads))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        for inputs in toy_steps([90.0 - 5 * i for i in range(NUM_WATCHED + 1)]):
            run(compiled, inputs)
    if num_heads:
        told = " ".join(dc.summary(compiled).refusals)
        assert "heads.1 reads what the first of them returned" in told
    with pytest.raises(dc.NotCached, match=r"test_broken_graphs.py:\d+: Dynamic shape operator"):
        dc.check(compiled)


class UnpaddedDiT(ToyDiT):
    """Drops the padding of the text before the blocks: their text has any length."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        e = e[:, (e[0].sum(dim=-1) > 0).nonzero()[:, 0]]
        for block in self.blocks:
            h = block(h, temb, e)
        return h


def test_size_that_depends_on_data_between_segments() -> None:
    sentence = "made in prologue and used in blocks.0, has a size that depends on data"
    with config.patch(capture_dynamic_output_shape_ops=True):
        assert_refused(UnpaddedDiT(gated_blocks(3)), sentence)


@pytest.mark.parametrize("mark", [mark_unbacked, torch._dynamo.mark_dynamic])
def test_size_of_which_nothing_may_be_assumed(mark) -> None:
    """It doesn't depend on data, and is refused with what to do instead."""
    compiled, (inputs,) = compile_toy(ToyDiT(gated_blocks(3))), toy_steps([90.0])
    mark(inputs["hidden_states"], 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        compiled(**inputs)
    told = " ".join(dc.summary(compiled).refusals)
    assert ("marked" in told and "torch._dynamo.mark_dynamic" in told) == (mark is mark_unbacked)
    assert dc.summary(compiled).is_cached == (mark is not mark_unbacked)


def test_explain_says_that_only_a_side_list_is_whole() -> None:
    inputs = toy_inputs(90.0)
    explanation = dc.explain(RefinedDiT(breaks_in_blocks=True), **inputs)
    assert all(graph.refusals for graph in explanation.graphs)
    assert "the blocks of RefinedDiT, `blocks`, are not in this graph" in str(explanation)
