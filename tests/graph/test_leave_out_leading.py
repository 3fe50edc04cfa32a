"""What stands at the beginning of a first block alone, put there by a hook, is the prologue's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from dit_cachegraph.backend import cut_graph
from dit_cachegraph.graph.cut.segment_graph import Cut
from support.toy_dits import GatedBlock, ToyDiT, toy_inputs
from support.toy_runs import assert_cached

Hook = Callable[[Tensor], Tensor]


def part(h: Tensor) -> Tensor:
    """Of the tokens, as each rank is given its own."""
    return h.narrow(1, 0, 3)


def doubled(h: Tensor) -> Tensor:
    return torch.mul(h, 2.0)


class HookedDiT(ToyDiT):
    """Calls `before` on what its first block is given, and `after` on what that returns."""

    def __init__(self, before: Hook | None = None, after: Hook | None = None) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(4)])
        first = self.blocks[0]
        if before is not None:
            first.register_forward_pre_hook(lambda _, args: (before(args[0]), *args[1:]))
        if after is not None:
            first.register_forward_hook(lambda _, args, output: after(output))


def cut_of(model: nn.Module) -> Cut:
    found = []

    def backend(gm: fx.GraphModule, _: object) -> Callable[..., object]:
        found.append(cut_graph(gm))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(**toy_inputs(90.0))
    (cut,) = found
    assert isinstance(cut, Cut), cut
    return cut


@pytest.mark.parametrize(("before", "called"), [(part, ".narrow("), (doubled, "torch.mul(")])
def test_what_a_hook_does_first_is_of_the_prologue(before: Hook, called: str) -> None:
    cut = cut_of(HookedDiT(before))
    prologue, *blocks, _ = cut.trunk.segments
    assert [block.kind for block in blocks] == [blocks[0].kind] * 4, "the first is as the others"
    assert called in cut.graphs[prologue.kind].gm.code
    assert called not in cut.graphs[blocks[0].kind].gm.code


def test_without_a_hook_the_first_block_is_as_it_was() -> None:
    with_hook, without = cut_of(HookedDiT(doubled)), cut_of(HookedDiT())
    firsts = [cut.graphs[cut.trunk.segments[1].kind].gm for cut in (with_hook, without)]
    called = [[node.target for node in gm.graph.nodes if node.op != "placeholder"] for gm in firsts]
    assert called[0] == called[1]


def test_what_differs_elsewhere_stays_in_the_block() -> None:
    cut = cut_of(HookedDiT(doubled, after=torch.tanh))
    prologue, first, second, *_ = cut.trunk.segments
    assert first.kind != second.kind
    assert "torch.mul" in cut.graphs[first.kind].gm.code
    assert "torch.mul" not in cut.graphs[prologue.kind].gm.code


@pytest.mark.parametrize("before", [part, doubled])
def test_hits_are_as_what_was_computed(before: Hook) -> None:
    assert assert_cached(HookedDiT(before)).num_blocks == 4
