"""Refuse what goes by how a value lies in memory, where it lies otherwise once the graph is cut.

Values cross the borders of segments contiguous. Dynamo has put the strides that it saw into the
graph as numbers, and nothing tells them from others there; so what reads memory by numbers is
refused where it is given a value that doesn't lie as it was traced:

    h = blk0(x).mT;  as_strided(h, h.shape, h.stride())    would read the elements in another order
    h = blk0(x).mT;  own_kernel(h, h.stride(0))            likewise
    h = blk0(x).mT;  layer_norm(h), h.mT, own_op(h)        ask the value itself
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.cut.borders import Borders
from dit_cachegraph.graph.cut.copy_streams import copied_streams
from dit_cachegraph.graph.fake_run import made_of
from dit_cachegraph.graph.fx_utils import (
    layout_key,
    line_of,
    target_name,
    tensors_in,
    value_of,
)
from dit_cachegraph.graph.node_effects import bodies_of, written_by
from dit_cachegraph.graph.understand.assign_nodes import Assignment, segment_name
from dit_cachegraph.graph.understand.find_streams import StreamNodes

# A view that is still one is written to.
_BY_NUMBERS = frozenset((
    "as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter", "view", "view_as",
    "triton_kernel_wrapper_mutation", "triton_kernel_wrapper_functional",
))  # fmt: skip
_OF_TORCH = ("torch", "builtins", "operator", "_operator", "math")


def check_layouts(assignment: Assignment, streams: Sequence[StreamNodes]) -> None:
    """Raise `CannotCut` at the first node that would read a value as it no longer lies."""
    borders, copies = Borders(assignment, streams), copied_streams(streams)
    for segment in range(assignment.num_segments):
        is_block = 1 <= segment <= len(assignment.blocks)
        given: dict[fx.Node, object] = {**copies} if is_block else {}
        own = assignment.nodes_of(segment)
        for node in own:
            for argument in node.all_input_nodes:
                if argument.op != "placeholder" and assignment.segment_of.get(argument) != segment:
                    given[argument] = borders.fake(argument)
        moved = {node: now for node, now in given.items() if _lies(now) != _lies(value_of(node))}
        name = segment_name(segment, assignment.blocks)
        for node in own if moved else ():
            _move(node, moved, name)


def _move(node: fx.Node, moved: dict[fx.Node, object], segment: str) -> None:
    """Add the node to those that are `moved`, with its value as it lies now, if it reads any; None
    stands for one that isn't known."""
    read = [argument for argument in node.all_input_nodes if argument in moved]
    if not read:
        return
    by_strides = next((n for n in read if _goes_by_strides(node, n, moved[n])), None)
    if by_strides is not None:
        raise CannotCut(
            f"{segment} reads `{by_strides.name}` by its strides (`{target_name(node)}`"
            f"{line_of(node)}), which are others there once the blocks are cut apart: call "
            "`contiguous()` on it before"
        )
    now = _value_now(node, moved)
    if _lies(now) != _lies(value_of(node)):
        moved[node] = now


def _goes_by_strides(node: fx.Node, read: fx.Node, now: object) -> bool:
    if _reads_by_numbers(node):
        return True
    if _is_of_torch(node):
        return False
    # An operator of one's own asks the value for its strides, or is given them.
    return not _strides_gone(value_of(read), now).isdisjoint(_numbers_given(node))


def _reads_by_numbers(node: fx.Node) -> bool:
    inner = (n for body in bodies_of(node) for n in body.graph.nodes)
    return target_name(node) in _BY_NUMBERS or any(map(_reads_by_numbers, inner))


def _is_of_torch(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(node.target).partition(".")[0] in ("aten", "prims")
    module = str(getattr(node.target, "__module__", ""))
    return node.op == "call_method" or module.partition(".")[0] in _OF_TORCH


def _numbers_given(node: fx.Node) -> Iterator[object]:
    """The integers among the arguments of a node, as `layout_key` has them."""
    for argument in (*node.args, *node.kwargs.values()):
        for item in argument if isinstance(argument, list | tuple) else (argument,):
            value = value_of(item) if isinstance(item, fx.Node) else item
            if isinstance(value, torch.SymInt):
                yield str(value.node.expr)
            elif isinstance(value, int):
                yield value


def _value_now(node: fx.Node, moved: Mapping[fx.Node, object]) -> object:
    """What the node makes of what it is given; None where that isn't known."""
    written = [argument for argument in written_by(node) if argument in moved]
    if written:
        return moved[written[0]]
    read = {n: moved.get(n, value_of(n)) for n in node.all_input_nodes}
    is_known = all(read[n] is not None for n in read if n in moved)
    is_plain = all(isinstance(t, FakeTensor) for t in tensors_in(list(read.values())))
    is_higher_order = isinstance(node.target, HigherOrderOperator)
    if is_higher_order or not (is_known and is_plain) or free_unbacked_symbols(value_of(node)):
        return None
    try:
        return made_of(node, read.__getitem__)
    except RuntimeError:  # Outside of its autocast it may be given two types.
        return None


def _lies(value: object) -> list[object]:
    """The sizes and strides of a value, which autocast leaves as they are."""
    return [layout_key(tensor)[3:] for tensor in tensors_in(value)]


def _strides_gone(traced: object, now: object) -> set[object]:
    """Those that a value had, and has no more at that place; all, where `now` isn't known."""
    had, has = ([step for t in tensors_in(v) for step in _strides_of(t)] for v in (traced, now))
    places = zip(had, has, strict=True) if has else ((step, None) for step in had)
    # One is also a switch, a number of heads, or an axis.
    return {old for old, new in places if old != new} - {1, None}


def _strides_of(tensor: torch.Tensor) -> list[object]:
    _, _, _, _, strides = layout_key(tensor)
    assert isinstance(strides, tuple)
    return list(strides)
