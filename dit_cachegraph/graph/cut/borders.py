"""What crosses a border between segments: in which layout, and with which size arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import fx
from torch._subclasses import FakeTensor

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.fx_utils import (
    free_symbols,
    is_concatenation,
    is_size_argument,
    target_name,
    value_of,
)
from dit_cachegraph.graph.understand.assign_nodes import ARGUMENT, Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes

_TAKES = frozenset(("getitem", "slice", "narrow", "chunk", "split", "split_with_sizes"))


@dataclass(frozen=True, slots=True)
class SegmentGraph:
    """A distinct segment: its graph, and the fake inputs it is compiled for."""

    gm: fx.GraphModule
    example_inputs: tuple[object, ...]


class Borders:
    """The declared layout of every value that crosses a border.

    What a block makes, and what enters the trunk as a stream, is contiguous; what else the prologue
    makes keeps its layout (a mask may be a broadcast view that must not be written out). But not a
    part of a concatenation: where sizes are open, Inductor makes that part alone, without the gaps.
    """

    def __init__(self, assignment: Assignment, streams: Sequence[StreamNodes]) -> None:
        self._contiguous = {n for s in streams for n in s.at if n is not None}
        self._segment_of = assignment.segment_of
        self._fakes: dict[fx.Node, object] = {}

    def is_normalized(self, node: fx.Node) -> bool:
        """True if the segment that makes this value hands it on contiguous."""
        segment = self._segment_of[node]
        if segment == ARGUMENT or not isinstance(value_of(node), torch.Tensor):
            return False
        return segment > 0 or node in self._contiguous or _is_part_of_concatenation(node)

    def fake(self, node: fx.Node) -> object:
        """The value with which the next segment is compiled."""
        value = value_of(node)
        if not (isinstance(value, torch.Tensor) and self.is_normalized(node)):
            return value
        if node not in self._fakes:
            self._fakes[node] = contiguous_fake(value)
        return self._fakes[node]


def _is_part_of_concatenation(node: fx.Node) -> bool:
    """True for a value with gaps, all of whose elements are of one concatenation."""
    value = value_of(node)
    while target_name(node) in _TAKES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return is_concatenation(node) and isinstance(value, torch.Tensor) and not value.is_contiguous()


def contiguous_fake(value: torch.Tensor) -> torch.Tensor:
    """A fake value of the same type and sizes that lies contiguous in memory.

    Raises:
        CannotCut: it is of a class that wraps other tensors.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise CannotCut(
            "the blocks run inside of `torch.vmap` or another transform, whose tensors can't be "
            "compared and kept: call the model with a batch"
        )
    if not isinstance(value, FakeTensor):
        raise CannotCut(
            f"the blocks work on a {type(value).__name__}, a tensor of a class of its own, which "
            "can't be compared and kept as a plain one is: give the model plain tensors"
        )
    if value.device.type == "meta":
        raise CannotCut("it is called with tensors on `meta`, which have no values to go by")
    with value.fake_mode, torch.no_grad():
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)


def size_arguments(values: Sequence[object], assignment: Assignment) -> tuple[fx.Node, ...]:
    """The arguments that hold the shape symbols of `values`, by name of the symbol.

    Raises:
        CannotCut: a symbol is no argument of the graph.
    """
    symbols = free_symbols(values)
    if not symbols:
        return ()
    holders: dict[sympy.Expr, fx.Node] = {}
    for node in assignment.nodes:
        if is_size_argument(node):
            value = value_of(node)
            assert isinstance(value, torch.SymInt)
            holders.setdefault(value.node.expr, node)
    missing = [s for s in symbols if s not in holders]
    if missing:
        raise CannotCut(f"a block depends on size {missing[0]}, which is no argument of the graph")
    return tuple(holders[s] for s in sorted(symbols, key=str))
