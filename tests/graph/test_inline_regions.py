"""Blocks under `torch.utils.checkpoint`, and those that `nested_compile_region` marks: without
gradients they are as those beside them."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dit_cachegraph as dc
from dit_cachegraph.graph.fx_utils import value_of
from dit_cachegraph.graph.prepare.inline_regions import inline_regions
from support.toy_dits import DIM, NUM_TOKENS, GatedBlock, ToyDiT, gated_dit, toy_inputs
from support.toy_runs import assert_cached, assert_refused, compile_toy, run


class CheckpointedDiT(ToyDiT):
    """Each block is checkpointed, and beside them stands a small MLP of as many layers."""

    def __init__(self, blocks: list[nn.Module], use_reentrant: bool, has_outer: bool) -> None:
        super().__init__(blocks)
        self.mlp = nn.Sequential(*(nn.Linear(DIM, DIM) for _ in blocks))
        self.use_reentrant, self.has_outer = use_reentrant, has_outer

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        temb = temb + self.mlp(temb)
        for block in self.blocks:
            h = self.checkpointed(self.inner if self.has_outer else block, h, temb, block)
        return h

    def inner(self, h: Tensor, temb: Tensor, block: nn.Module) -> Tensor:
        return self.checkpointed(block, h, temb, block)

    def checkpointed(self, run, h: Tensor, temb: Tensor, block: nn.Module) -> Tensor:
        args = (h, temb, block) if run == self.inner else (h, temb)
        return checkpoint(run, *args, use_reentrant=self.use_reentrant)


NEEDS_2_13 = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="Dynamo takes `use_reentrant=True` from torch 2.13 on"
)
IS_REENTRANT = pytest.mark.parametrize(
    "use_reentrant", [False, pytest.param(True, marks=NEEDS_2_13)]
)


def gated_blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(4)]


@pytest.mark.parametrize("has_outer", [False, True])
@IS_REENTRANT
def test_checkpointed_blocks_are_found(use_reentrant: bool, has_outer: bool) -> None:
    graph = assert_cached(CheckpointedDiT(gated_blocks(), use_reentrant, has_outer))
    plain = assert_cached(gated_dit(4))
    assert graph.block_lists == plain.block_lists
    assert graph.num_compiled == plain.num_compiled
    assert graph.num_streams == plain.num_streams


class BufferBlock(GatedBlock):
    """Counts in a buffer what a model that trains would count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        self.count.add_(1)
        return super().forward(h, temb)


class DroppingBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return F.dropout(super().forward(h, temb), 0.5, self.training)


class WritingBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        h.add_(temb)
        return super().forward(h, temb)


@IS_REENTRANT
def test_effects_under_a_checkpoint_are_seen(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    counting = CheckpointedDiT([BufferBlock() for _ in range(3)], use_reentrant, False)
    assert_refused(counting, r"blocks\.0 writes in place \(`add_` at")
    dropping = CheckpointedDiT([DroppingBlock() for _ in range(3)], use_reentrant, False)
    assert_refused(dropping.train(), r"blocks\.0 draws random numbers \(`dropout` at")
    kept = CheckpointedDiT([DroppingBlock() for _ in range(3)], use_reentrant, False)
    assert assert_cached(kept.eval()).num_blocks == 3


def test_writes_to_the_stream_under_a_checkpoint_are_made_plain() -> None:
    torch.manual_seed(0)
    graph = assert_cached(CheckpointedDiT([WritingBlock() for _ in range(3)], False, False))
    assert (graph.num_blocks, graph.num_streams) == (3, 1)


class BranchBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        h = super().forward(h, temb)
        return h + torch.cond(h.sum() > -1e9, torch.sin, torch.cos, (h,))


def test_a_branch_inside_a_checkpoint_is_run_as_it_is() -> None:
    torch.manual_seed(0)
    blocks = [BranchBlock() for _ in range(4)]
    assert assert_cached(CheckpointedDiT(blocks, False, False)).num_blocks == 4


class MarkedBlock(GatedBlock):
    """Dynamo traces the first one of a model, and calls its body for the others."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return super().forward(h, temb, e)


def marked_blocks(kind: type[MarkedBlock] = MarkedBlock) -> list[nn.Module]:
    torch.manual_seed(0)
    return [kind() for _ in range(4)]


def test_marked_blocks_are_as_those_without_a_mark() -> None:
    graph = assert_cached(ToyDiT(marked_blocks()))
    plain = assert_cached(gated_dit(4))
    assert graph.block_lists == plain.block_lists
    assert graph.num_compiled == plain.num_compiled
    assert graph.num_streams == plain.num_streams


def test_marked_blocks_at_another_size() -> None:
    model = ToyDiT(marked_blocks())
    compiled = compile_toy(model, residual_diff_threshold=0.0)
    for num_tokens in (NUM_TOKENS, NUM_TOKENS + 1, NUM_TOKENS + 5):
        inputs = toy_inputs(60.0)
        inputs["hidden_states"] = torch.randn(2, num_tokens, DIM)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    graphs = dc.summary(compiled).graphs
    assert [graph.num_blocks for graph in graphs] == [4, 4]


class WritingInsideBlock(MarkedBlock):
    """Writes in place to what it makes itself, and hands a view of it on."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        made = GatedBlock.forward(self, h, temb)
        made[:, 1:].add_(temb)
        return made


class WritingBetweenDiT(ToyDiT):
    """Writes in place to what each block hands on."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
            h[:, 1:].add_(temb)
        return h


class MakingBlock(MarkedBlock):
    """Writes in place to a part of what it makes of nothing but sizes."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        made = torch.zeros(2, NUM_TOKENS, DIM)
        made[:, 1:] = GatedBlock.forward(self, h, temb)[:, 1:]
        return h + made


class CastingBlock(MarkedBlock):
    """Writes in place to a part of what autocast has cast."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            made = self.up(h)
            made[:, 1:].mul_(0.5)
            return h + self.down(torch.tanh(made))


class ChoosingBlock(MarkedBlock):
    """Writes in place to what a graph of its own makes."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        gated = GatedBlock.forward(self, h, temb)
        made = torch.cond(gated.sum() > -1e9, torch.sin, torch.cos, (gated,))
        made[:, 1:].mul_(0.5)
        return h + made


@pytest.mark.parametrize("kind", [MakingBlock, CastingBlock, ChoosingBlock])
def test_what_a_region_makes_anew_is_its_own_at_each_call(kind: type[MarkedBlock]) -> None:
    graph = assert_cached(ToyDiT(marked_blocks(kind)))
    assert (graph.num_blocks, graph.num_streams, graph.num_compiled) == (4, 1, 3)


class MappedBlock(MarkedBlock):
    """What is mapped over reads what is not."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        gate = 1 + temb[0]
        return GatedBlock.forward(self, torch.vmap(lambda sample: sample * gate)(h), temb)


def test_marked_blocks_that_map_over_samples() -> None:
    assert assert_cached(ToyDiT(marked_blocks(MappedBlock))).num_blocks == 4


@pytest.mark.parametrize("model", [ToyDiT, WritingBetweenDiT])
def test_each_call_of_a_marked_region_has_values_of_its_own(model: type[ToyDiT]) -> None:
    """By the values of one body, what is written to would be the same for all blocks."""
    graph = assert_cached(model(marked_blocks(WritingInsideBlock)))
    assert (graph.num_blocks, graph.num_streams) == (4, 1)


class AutocastBlock(MarkedBlock):
    """Its products are in bfloat16, which only the autocast around them tells."""

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return h + GatedBlock.forward(self, h, temb)


class _Watched(fx.Interpreter):
    """Runs a graph, and holds what each node makes to the value that it carries."""

    def run_node(self, n: fx.Node) -> object:
        made, told = super().run_node(n), value_of(n)
        if isinstance(made, Tensor) and n.op != "placeholder":
            assert isinstance(told, Tensor)
            assert (told.dtype, told.shape) == (made.dtype, made.shape), n.format_node()
        return made


@pytest.mark.parametrize("kind", [MarkedBlock, WritingInsideBlock, AutocastBlock])
def test_values_are_what_the_nodes_make(kind: type[MarkedBlock]) -> None:
    def watched(gm: fx.GraphModule, example_inputs: Sequence[Tensor]) -> Callable[..., object]:
        inline_regions(gm)
        assert not gm.graph.find_nodes(op="get_attr")
        return _Watched(gm).run

    model = ToyDiT(marked_blocks(kind))
    actual = run(torch.compile(model, backend=watched), toy_inputs(60.0))
    torch.testing.assert_close(actual, run(model, toy_inputs(60.0)))


def test_marked_blocks_that_autocast() -> None:
    assert assert_cached(ToyDiT(marked_blocks(AutocastBlock))).num_blocks == 4


def test_marked_blocks_under_inductor() -> None:
    assert assert_cached(ToyDiT(marked_blocks()), inner_backend="inductor").num_blocks == 4


@torch.compiler.nested_compile_region
def gated_by(h: Tensor, temb: Tensor) -> Tensor:
    return h * (1 + torch.tanh(temb))


class GatingBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return super().forward(gated_by(h, temb), temb)


class GatingDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return super().trunk(gated_by(h, temb), temb, e)


def test_a_marked_function_is_part_of_the_block_that_calls_it() -> None:
    """Also where its body was traced outside of any module."""
    torch.manual_seed(0)
    graph = assert_cached(GatingDiT([GatingBlock() for _ in range(4)]))
    assert (graph.num_blocks, graph.num_streams) == (4, 1)


class OuterMarkedBlock(MarkedBlock):
    def __init__(self) -> None:
        super().__init__()
        self.inner = MarkedBlock()

    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return self.inner(h, temb) + temb


def test_a_marked_region_inside_another() -> None:
    assert assert_cached(ToyDiT(marked_blocks(OuterMarkedBlock))).num_blocks == 4


class MarkedDroppingBlock(MarkedBlock):
    @torch.compiler.nested_compile_region
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return F.dropout(GatedBlock.forward(self, h, temb), 0.5, self.training)


def test_a_marked_block_that_draws_is_refused_by_its_own_name() -> None:
    dropping = ToyDiT(marked_blocks(MarkedDroppingBlock))
    assert_refused(dropping.train(), r"blocks\.0 draws random numbers \(`dropout` at")
