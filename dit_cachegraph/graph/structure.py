"""The structure of a run of nodes: equal for runs that one compiled function can stand for.

Nodes are told by their place in the run, outside values by the order of their first use, sizes by
their expression:

    y = linear(x, w); z = y + x    ->    (linear, entry 0, entry 1), (add, node 0, entry 0)
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import fx

from dit_cachegraph.graph.fx_utils import (
    input_key,
    is_size_arithmetic,
    size_expression,
    target_key,
    value_of,
    without_message,
)


@dataclass(frozen=True, slots=True)
class Structure:
    """`nodes`: the run without size arithmetic; `entries`: outside values in order of first use;
    `rows[i]`: what node `i` computes."""

    nodes: tuple[fx.Node, ...]
    entries: tuple[fx.Node, ...]
    rows: tuple[Hashable, ...]
    places: dict[fx.Node, int]
    entry_kinds: tuple[Hashable, ...]

    def place_of(self, node: fx.Node) -> Hashable:
        """The same for the same result of two runs, also where one of them drops a later node."""
        return self.rows[self.places[node]]


def structure_of(
    nodes: Sequence[fx.Node], layout_of: Callable[[fx.Node], object] = value_of
) -> Structure:
    """The structure of `nodes`; `layout_of` says which layout an outside value has at the border.

    Without strides being compared where `layout_of` is the default: a stream may enter the first
    block contiguous and the others as a view, and still be the same stream.
    """
    nodes = [node for node in nodes if not is_size_arithmetic(node)]
    places = {node: i for i, node in enumerate(nodes)}
    entries: dict[fx.Node, int] = {}
    rows = []
    for node in nodes:
        for arg in node.all_input_nodes:
            if arg not in places and size_expression(arg) is None:
                entries.setdefault(arg, len(entries))

        def ref(arg: fx.Node) -> Hashable:
            if arg in places:
                return ("node", places[arg])
            return ("entry", entries[arg]) if arg in entries else ("size", size_expression(arg))

        args = without_message(node)
        rows.append((node.op, target_key(node), _freeze(args, ref), _freeze(node.kwargs, ref)))
    kinds = tuple(input_key(layout_of(entry)) for entry in entries)
    if layout_of is value_of:
        kinds = tuple(k[:2] + (k[3],) if k[0] == "tensor" else k for k in kinds)
    return Structure(tuple(nodes), tuple(entries), tuple(rows), places, kinds)


def _freeze(value: object, ref: Callable[[fx.Node], Hashable]) -> Hashable:
    """A hashable stand-in for an argument: nodes by place, containers by content."""
    if isinstance(value, fx.Node):
        return ref(value)
    if isinstance(value, list | tuple):
        return ("sequence", *(_freeze(item, ref) for item in value))
    if isinstance(value, dict):
        return ("dict", *((key, _freeze(item, ref)) for key, item in value.items()))
    if isinstance(value, slice):
        return ("slice", *(_freeze(x, ref) for x in (value.start, value.stop, value.step)))
    # `1`, `1.0` and `True` are equal in Python and are not the same argument.
    return (type(value).__name__, value if isinstance(value, Hashable) else repr(value))
