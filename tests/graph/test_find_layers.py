"""Layers whose parts are called one by one: what is one block, and where it ends."""

import pytest
import torch
from torch import Tensor, nn

from dit_cachegraph.report import GraphReport
from support.toy_dits import DIM, GatedBlock, ToyDiT
from support.toy_runs import assert_cached


class Mlp(nn.Module):
    def __init__(self, width: int = 2 * DIM) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(DIM, width), nn.Linear(width, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))


def lists_of(graph: GraphReport) -> list[tuple[str, int]]:
    return [(found.name, found.num_blocks) for found in graph.block_lists]


class PartsDiT(ToyDiT):
    """Layers of two parts, each added to what passes by."""

    def __init__(self, num_layers: int, times: int = 1) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.layers = nn.ModuleList(nn.ModuleList([Mlp(), Gate()]) for _ in range(num_layers))
        self.times = times

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for _ in range(self.times):
            for mlp, gate in self.layers:
                h = h + mlp(h * (1 + temb))
                h = gate(h) * temb + h
        return h


def test_a_list_of_lists_is_one_list_of_layers() -> None:
    graph = assert_cached(PartsDiT(4))
    assert lists_of(graph) == [("layers", 4)]
    # What precedes the first layer and follows the last is theirs: prologue, layer, epilogue.
    assert (graph.num_streams, graph.num_compiled) == (1, 3)


def test_a_list_of_lists_that_is_run_twice() -> None:
    graph = assert_cached(PartsDiT(2, times=2))
    assert lists_of(graph) == [("layers", 4)]
    assert graph.num_compiled == 3


def test_one_layer_is_none() -> None:
    """Its parts are no blocks either."""
    with pytest.raises(Exception, match="no list of at least two blocks"):
        assert_cached(PartsDiT(1))


class AtTimesDoneTwiceBlock(GatedBlock):
    def __init__(self, is_done_twice: bool) -> None:
        super().__init__()
        self.is_done_twice = is_done_twice

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = super().forward(h, temb)
        return super().forward(h, temb) if self.is_done_twice else h


class StagesDiT(ToyDiT):
    """A list of stages, each a list of blocks; those marked "2" do more than the others."""

    def __init__(self, stage: str) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.stages = nn.ModuleList(
            nn.ModuleList(AtTimesDoneTwiceBlock(kind == "2") for kind in stage) for _ in range(2)
        )

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for stage in self.stages:
            for block in stage:
                h = block(h, temb)
        return h


@pytest.mark.parametrize("stage", ["11", "112", "2121", "11222"])
def test_blocks_in_a_list_of_stages_stay_blocks(stage: str) -> None:
    """A hit would run half of the trunk, were the first of two stages its first block."""
    num_blocks = len(stage)
    found = lists_of(assert_cached(StagesDiT(stage)))
    assert found == [("stages.0", num_blocks), ("stages.1", num_blocks)]


def test_a_list_of_two_that_differ_is_a_layer() -> None:
    assert lists_of(assert_cached(StagesDiT("12"))) == [("stages", 2)]


class OpenBlocksDiT(ToyDiT):
    """The parts of each block are called from outside, the block never."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(3)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block.norm(h) * (1 + temb)
            h = h + temb * block.down(torch.tanh(block.up(x)))
        return h


def test_blocks_that_are_never_called_are_blocks() -> None:
    graph = assert_cached(OpenBlocksDiT())
    assert lists_of(graph) == [("blocks", 3)]
    assert (graph.num_streams, graph.num_compiled) == (1, 3)


class SideBySideDiT(ToyDiT):
    """Two lists, zipped, or one after the other."""

    def __init__(self, is_zipped: bool) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.mlps = nn.ModuleList(Mlp() for _ in range(3))
        self.gates = nn.ModuleList(Gate() for _ in range(3))
        self.is_zipped = is_zipped

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        if self.is_zipped:
            for mlp, gate in zip(self.mlps, self.gates, strict=True):
                h = h + temb * mlp(h)
                h = h + gate(h)
            return h
        for mlp in self.mlps:
            h = h + temb * mlp(h)
        for gate in self.gates:
            h = h + gate(h)
        return h


def test_two_lists_that_are_zipped_are_one() -> None:
    graph = assert_cached(SideBySideDiT(is_zipped=True))
    assert lists_of(graph) == [("mlps and gates", 3)]
    assert (graph.num_streams, graph.num_compiled) == (1, 3)


def test_two_lists_one_after_the_other_are_two() -> None:
    assert lists_of(assert_cached(SideBySideDiT(is_zipped=False)))[0] == ("mlps", 3)
