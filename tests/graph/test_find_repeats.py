"""Blocks that are no modules: found by structure alone, where nothing else is found."""

import pytest
import torch
from torch import Tensor, nn

from support.toy_dits import DIM, GatedBlock, ToyDiT
from support.toy_runs import assert_cached, assert_refused

NO_LIST = "this graph calls no module of a list"


def gated(h: Tensor, temb: Tensor, up: Tensor, down: Tensor) -> Tensor:
    x = nn.functional.layer_norm(h, h.shape[-1:]) * (1 + temb)
    return h + temb * nn.functional.linear(torch.tanh(nn.functional.linear(x, up)), down)


def squashed(h: Tensor, temb: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return h + temb * torch.tanh(nn.functional.linear(nn.functional.linear(h, up), down))


class FunctionDiT(ToyDiT):
    """A loop over functions; the weights are plain parameters of the model."""

    def __init__(self, *functions: object) -> None:
        torch.manual_seed(0)
        super().__init__([])
        self.functions = functions
        shape = (len(functions), 2 * DIM, DIM)
        self.up = nn.ParameterList((torch.randn(shape) / DIM**0.5).unbind())
        self.down = nn.ParameterList((torch.randn(shape).mT / DIM**0.5).unbind())

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for function, up, down in zip(self.functions, self.up, self.down, strict=True):
            h = function(h, temb, up, down)
        return h


@pytest.mark.parametrize("num_blocks", [2, 3, 8])
def test_loop_over_a_function(num_blocks: int) -> None:
    graph = assert_cached(FunctionDiT(*[gated] * num_blocks))
    assert (graph.num_blocks, graph.num_compiled) == (num_blocks, 3)
    assert graph.block_lists[0].name.startswith("repeated code at test_find_repeats.py:")


def test_loop_over_two_functions_in_turn() -> None:
    graph = assert_cached(FunctionDiT(*[gated, squashed] * 3))
    assert (graph.num_blocks, graph.num_compiled) == (3, 3)


def test_functions_that_have_nothing_in_common() -> None:
    assert_refused(FunctionDiT(gated, squashed), NO_LIST)


class RepeatedHeadDiT(FunctionDiT):
    """What repeats is a small part of the graph: the stream has few channels there."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        wide = torch.cat([h] * 8, dim=1)
        wide = torch.sin(wide) * torch.cos(wide + 1).exp().tanh()
        h = h + wide.mean(dim=1, keepdim=True).softmax(dim=-1)
        return super().trunk(h[:, :1], temb, e).expand_as(h)


def test_repetition_that_is_a_small_part_of_the_graph() -> None:
    assert_refused(RepeatedHeadDiT(squashed, squashed), NO_LIST)


class DictDiT(ToyDiT):
    """The blocks are in a dictionary, beside something else."""

    def __init__(self, num_blocks: int, is_chained: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__([])
        names = ("first", "second", "third", "fourth")[:num_blocks]
        self.parts = nn.ModuleDict({name: GatedBlock() for name in names})
        self.parts["scale"] = nn.Linear(DIM, DIM)
        self.is_chained = is_chained

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        start = h = self.parts["scale"](h)
        for name, part in self.parts.items():
            if name != "scale":
                h = part(h, temb) if self.is_chained else h + part(start, temb)
        return h


def test_blocks_of_a_dictionary() -> None:
    graph = assert_cached(DictDiT(4))
    assert [(b.name, b.num_blocks) for b in graph.block_lists] == [("parts", 4)]
    assert graph.num_compiled == 3


@pytest.mark.parametrize(
    ("num_blocks", "is_chained", "sentence"),
    [(1, True, NO_LIST), (3, False, "no list of at least two blocks.*seen: parts x 3")],
)
def test_dictionary_without_a_chain(num_blocks: int, is_chained: bool, sentence: str) -> None:
    assert_refused(DictDiT(num_blocks, is_chained), sentence)


class HeadDiT(DictDiT):
    """One head of many, kept by name, does as much to the stream as a block."""

    def __init__(self) -> None:
        super().__init__(3)
        self.heads = nn.ModuleDict({"2-1": GatedBlock()})

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return self.heads["2-1"](super().trunk(h, temb, e), temb)


def test_head_in_a_dictionary_is_no_block() -> None:
    found = assert_cached(HeadDiT()).block_lists
    assert [(b.name, b.num_blocks) for b in found] == [("parts", 3)]
