"""Blocks under `torch.utils.checkpoint`: without gradients they are as those beside it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from support.toy_dits import DIM, GatedBlock, ToyDiT, gated_dit
from support.toy_runs import assert_cached, assert_refused


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
