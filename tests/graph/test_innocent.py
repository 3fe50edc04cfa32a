"""A refusal blames nobody who is innocent: no break where nothing broke, no side list, no line that
its user can't edit."""

import importlib

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.graph.find.check_fragment import ASKS_TO_EDIT
from support.toy_dits import DIM, GatedBlock, ToyDiT, adding_dit, toy_inputs
from support.toy_runs import compile_toy, run

LIBRARY = """
import torch

@torch.compiler.disable
def between(h):
    return h

def through(h):
    return between(h)
"""


def gated_blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    return [GatedBlock() for _ in range(3)]


def refusals_of(model: nn.Module) -> str:
    compiled = compile_toy(model)
    with pytest.warns(dc.NotCachedWarning):
        run(compiled, toy_inputs(90.0))
    return "\n".join(dc.summary(compiled).refusals)


class BrokenDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = self.between(block(h, temb))
        return h

    def between(self, h: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return h


class BreakingBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        h = super().forward(h, temb)
        torch._dynamo.graph_break()
        return h + 0.1 * temb


def test_a_break_is_named_where_there_is_one():
    assert "graph break" not in refusals_of(adding_dit(1))
    assert "graph break" in refusals_of(ToyDiT([BreakingBlock() for _ in range(3)]))


@pytest.mark.parametrize(
    ("folder", "name", "is_asked"),
    [("own", "own_library", True), ("site-packages", "installed_library", False)],
)
def test_nobody_is_asked_to_edit_a_library(tmp_path, monkeypatch, folder, name, is_asked):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"{name}.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(tmp_path / folder)
    model = BrokenDiT(gated_blocks())
    model.between = importlib.import_module(name).through
    found = dc.explain(model, **toy_inputs(90.0)).first_break
    assert found is not None and found.place.startswith(f"{name}.py:")
    assert found.change.startswith(ASKS_TO_EDIT) == is_asked


class MlpBesideDiT(ToyDiT):
    """Its blocks only hold weights for functions; the modules of a small MLP are called."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.mlp = nn.ModuleList([nn.Linear(DIM, DIM + 1), nn.Linear(DIM + 1, DIM)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for layer in self.mlp:
            temb = layer(temb)
        for block in self.blocks:
            up = nn.functional.linear(h, block.up.weight)
            h = h + nn.functional.linear(torch.tanh(up * temb.mean()), block.down.weight)
        return h


class MlpAloneDiT(MlpBesideDiT):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.blocks = nn.ModuleList()

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for layer in self.mlp:
            h = layer(h)
        return h


def test_a_side_list_is_not_blamed():
    said = refusals_of(MlpBesideDiT(gated_blocks()))
    assert "hands on nothing" not in said
    assert "the blocks that were found (mlp x 2 at " in said
    assert "do 3% of the work of this graph" in said
    assert "hands on nothing that it was given" in refusals_of(MlpAloneDiT(gated_blocks()))
