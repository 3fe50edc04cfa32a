"""A graph of `torch.export` is cut as Dynamo's is: the same blocks, streams and roles."""

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from dit_cachegraph.backend import cut_graph
from dit_cachegraph.exc import CannotSave
from dit_cachegraph.graph.cut.segment_graph import Cut
from dit_cachegraph.graph.fx_utils import value_of
from dit_cachegraph.graph.prepare.from_export import as_traced
from support.toy_dits import (
    ControlDiT,
    GatedBlock,
    ReadingDiT,
    SlicedTembDiT,
    ToyDiT,
    TwoListDiT,
    toy_inputs,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.skipif(
        torch.torch_version.TorchVersion(torch.__version__) < "2.13", reason="tried since 2.13"
    ),
]


def blocks(number: int) -> list[nn.Module]:
    return [GatedBlock() for _ in range(number)]


class FloatBlock(GatedBlock):
    """Asks for a dtype that its modulation has already."""

    def forward(self, h, temb, e=None):
        return super().forward(h, temb.float().contiguous(), e)


class FloatDiT(ReadingDiT):
    def __init__(self) -> None:
        super().__init__([FloatBlock() for _ in range(3)])


class SizedDiT(ReadingDiT):
    """Works with the number of its tokens."""

    def __init__(self) -> None:
        super().__init__(blocks(3))

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        batch, tokens, width = hidden_states.shape
        folded = hidden_states.reshape(batch, tokens // 2, 2 * width)
        return super().forward(
            folded.reshape(batch, tokens, width), timestep, encoder_hidden_states
        )


MODELS = {
    "reading": lambda: ReadingDiT(blocks(3)),
    "two lists": lambda: TwoListDiT(2, 3),
    "control": lambda: ControlDiT(blocks(3)),
    "sliced": lambda: SlicedTembDiT(blocks(3)),
    "no change of dtype": FloatDiT,
    "sizes": SizedDiT,
}


def exported(model: nn.Module, shapes: dict[str, object] | None = None) -> fx.GraphModule:
    with torch.no_grad():
        given = toy_inputs(90.0)
        return as_traced(torch.export.export(model, (), given, dynamic_shapes=shapes))


def traced(model: nn.Module) -> Cut:
    found = []

    def keep(gm, _):
        found.append(cut_graph(gm))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep)(**toy_inputs(90.0))
    (cut,) = found
    return cut


def told(cut: Cut, names: list[str]) -> dict[str, object]:
    """What of a cut says how it is run, by the names of its arguments."""
    trunk, roles = cut.trunk, cut.roles
    return {
        "blocks": [(blocks.name, blocks.num_blocks) for blocks in trunk.block_lists],
        "kinds": [segment.kind for segment in trunk.segments],
        "streams": sorted(stream.is_added_to for stream in trunk.streams),
        "latents": [names[i] for i in roles.latents],
        "timesteps": [names[i] for i in roles.timesteps],
        "conditioning": [names[i] for i in roles.conditioning],
        "has_signal": not isinstance(trunk.modulated_input, str),
        "controls": len(trunk.injected),
        "work": trunk.costs.work[1:-1],
        "weights": trunk.costs.weights,
    }


def names_in(gm: fx.GraphModule) -> list[str]:
    return [node.name for node in gm.graph.find_nodes(op="placeholder")]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_cut_as_dynamos_graph_is(name):
    model = MODELS[name]().eval()
    gm = exported(model)
    own, other = cut_graph(gm), traced(model)
    assert isinstance(own, Cut)
    given = [n.removeprefix("l_").rstrip("_") for n in _dynamos_names(model)]
    assert told(own, names_in(gm)) == told(other, given)


def _dynamos_names(model: nn.Module) -> list[str]:
    found = []

    def keep(gm, _):
        found.extend(names_in(gm))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep)(**toy_inputs(90.0))
    return found


def test_sizes_are_arguments_and_arithmetic_on_them():
    open_sizes = {name: {0: Dim.DYNAMIC} for name in toy_inputs(90.0)}
    gm = exported(SizedDiT().eval(), open_sizes)
    size, *others = gm.graph.find_nodes(op="placeholder")
    assert isinstance(value_of(size), torch.SymInt)
    assert not [n for n in others if isinstance(value_of(n), torch.SymInt)]
    assert not [n for n in gm.graph.nodes if "sym_size" in str(n.target)]
    cut = cut_graph(gm)
    assert isinstance(cut, Cut) and cut.trunk.samples.why_whole is None


class PickingDiT(ToyDiT):
    """Blocks that give each sample what another has."""

    def trunk(self, h, temb, e):
        order = torch.arange(h.shape[0] - 1, -1, -1)
        for block in self.blocks:
            h = block(h, temb)[order]
        return h


def test_rows_that_are_picked_are_seen():
    open_sizes = {name: {0: Dim.DYNAMIC} for name in toy_inputs(90.0)}
    cut = cut_graph(exported(PickingDiT(blocks(3)).eval(), open_sizes))
    assert isinstance(cut, Cut)
    assert "index" in cut.trunk.samples.why_whole


def test_a_multiple_of_a_size_is_refused():
    with torch.no_grad(), pytest.raises(CannotSave, match="no multiple of them"):
        given = toy_inputs(90.0, batch=4)
        shapes = {name: {0: 2 * Dim("half")} for name in given}
        as_traced(torch.export.export(ReadingDiT(blocks(3)), (), given, dynamic_shapes=shapes))
