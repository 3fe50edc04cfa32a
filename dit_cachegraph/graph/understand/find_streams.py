"""See from the dataflow which streams the blocks carry.

A stream is told by where it enters and leaves the blocks: the k-th outside value that a block of
one kind reads is the same stream for all blocks of that kind, and so is what they hand on from the
same place. Joining these facts along the trunk (a union-find over values, entries and exits) gives
every value between two blocks its stream, also through glue that keeps its shape and also where
two streams have the same shape:

    block.0: reads x0, y0, temb  ->  x1, y1      entries: x, y (temb is never made by a block)
    block.1: reads x1, y1, temb  ->  x2, y2      streams: {x0, x1, x2}, {y0, y1, y2}
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import (
    is_weight,
    num_elements_hint,
    shape_key,
    target_key,
    value_of,
)
from dit_cachegraph.graph.structure import Structure, structure_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.passed_on import passed_on
from dit_cachegraph.plan import Block


@dataclass(frozen=True, slots=True)
class StreamNodes:
    """One stream: `at[i]` is the node that carries it over boundary `i`, or None."""

    label: Hashable
    at: tuple[fx.Node | None, ...]

    @property
    def reaches_the_end(self) -> bool:
        return self.at[-1] is not None

    def moves_in(self, block: int) -> bool:
        """True if the block is given it and hands it on: it does not just pass by."""
        return self.at[block] is not None and self.at[block + 1] not in (None, self.at[block])


@dataclass(frozen=True, slots=True)
class _Ends:
    """What one block reads from outside (`entries`, in order of first use) and hands on."""

    kind: Hashable
    entries: tuple[fx.Node, ...]
    exits: dict[fx.Node, Hashable]


class _UnionFind:
    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        root = item
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        self._parent[item] = root
        return root

    def union(self, a: Hashable, b: Hashable) -> None:
        self._parent[self.find(a)] = self.find(b)


def find_streams(assignment: Assignment) -> tuple[StreamNodes, ...]:
    """The carried streams, in order of first use by block 0, then of appearance."""
    order = {node: i for i, node in enumerate(assignment.nodes)}
    ends = [_ends_of(block, assignment.nodes, order) for block in assignment.blocks]
    labels = _UnionFind()
    for end in ends:
        for k, entry in enumerate(end.entries):
            if not is_weight(entry):
                labels.union(entry, ("entry", end.kind, k))
        for node, place in end.exits.items():
            labels.union(node, ("exit", end.kind, place))
    _join_through_glue(ends, assignment, labels)
    for end in ends:
        _join_entries_with_exits(end, labels, assignment.segment_of)
    return _streams(ends, assignment, labels)


def _ends_of(block: Block, nodes: Sequence[fx.Node], order: dict[fx.Node, int]) -> _Ends:
    inside = nodes[block.first : block.last + 1]
    structure = structure_of(inside)
    readers = _first_readers(structure)
    kind = (block.path.rpartition(".")[0], block.class_name, structure.entry_kinds, readers)
    exits = {
        node: structure.place_of(node)
        for node in structure.nodes
        if isinstance(value_of(node), torch.Tensor)
        and any(order[user] > block.last for user in node.users)
    }
    return _Ends(kind, structure.entries, exits)


def _first_readers(structure: Structure) -> tuple[Hashable, ...]:
    """What is first done with each outside value but weights. Two blocks may be given the same
    shapes in another order: a control and the stream, or the stream and a skip."""
    readers: dict[fx.Node, Hashable] = {}
    for node in structure.nodes:
        for argument in node.all_input_nodes:
            readers.setdefault(argument, target_key(node))
    return tuple(readers[entry] for entry in structure.entries if not is_weight(entry))


def _join_through_glue(ends: Sequence[_Ends], assignment: Assignment, labels: _UnionFind) -> None:
    """A value that passes through glue and keeps its shape stays the same stream."""
    made = {node for end in ends for node in end.exits}
    targets = [entry for end in ends for entry in end.entries]
    targets += [n for n in assignment.nodes_of(assignment.num_segments - 1)]
    for entry in dict.fromkeys(targets):
        if entry in made or assignment.segment_of[entry] <= 0:
            continue
        origins = {labels.find(n) for n in _block_values_behind(entry, made)}
        if len(origins) == 1:
            labels.union(entry, next(iter(origins)))


def _block_values_behind(entry: fx.Node, made: set[fx.Node]) -> list[fx.Node]:
    """Values made by blocks that reach `entry` through nodes of its own shape alone."""
    shape = shape_key(entry)
    found, stack, seen = [], [entry], {entry}
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg in seen or shape_key(arg) != shape:
                continue
            seen.add(arg)
            if arg in made:
                found.append(arg)
            else:
                stack.append(arg)
    return found


def _join_entries_with_exits(
    end: _Ends, labels: _UnionFind, segment_of: dict[fx.Node, int]
) -> None:
    """A block of a kind of its own (SD3's last one) has no sibling that says which stream its exits
    are. Then the residual path says it (`out = in + ...`), then that blocks made it and it is no
    control, then the shape, then the order. What a block hands on beside a stream that goes on is
    none, also where it has the shape of one."""
    entries = [entry for entry in end.entries if not is_weight(entry)]
    roots = {labels.find(entry) for entry in entries}
    lone = [node for node in end.exits if labels.find(node) not in roots]
    going_on = roots & {labels.find(node) for node in end.exits}
    entries = [entry for entry in entries if labels.find(entry) not in going_on]
    behind = {node: _residual_entries(node, set(entries)) for node in lone}
    for node in lone:
        same_shape = [entry for entry in entries if shape_key(entry) == shape_key(node)]
        added = [entry for entry in same_shape if entry in behind[node]]
        made = [entry for entry in same_shape if segment_of[entry] > 0]
        # A control that is added to what a block makes anew is not what comes in its place.
        of_others = {entry for other in lone if other is not node for entry in behind[other]}
        in_its_place = [entry for entry in made if entry not in of_others]
        known = [entry for entry in added if entry in made] or (in_its_place if added else [])
        origin = known or added or made or same_shape
        if len({labels.find(entry) for entry in origin}) > 1:
            alike = [other for other in lone if shape_key(other) == shape_key(node)]
            origin = origin[:1] if added else origin[alike.index(node) :][:1]
        if origin:
            labels.union(node, origin[0])


def _residual_entries(node: fx.Node, entries: set[fx.Node]) -> list[fx.Node]:
    """Entries that reach the node through sums of as many elements, in whatever type and shape."""
    found, stack, seen = [], [node], {node}
    while stack:
        current = stack.pop()
        if current in entries:
            found.append(current)
            continue
        alike = [n for n in passed_on(current) if n not in seen and _size_of(n) == _size_of(node)]
        seen.update(alike)
        stack += alike
    return found


def _size_of(node: fx.Node) -> int:
    return num_elements_hint(value_of(node))


def _streams(
    ends: Sequence[_Ends],
    assignment: Assignment,
    labels: _UnionFind,
) -> tuple[StreamNodes, ...]:
    carried = dict.fromkeys(labels.find(n) for end in ends for n in end.exits)
    entered = dict.fromkeys(labels.find(n) for n in ends[0].entries)
    ordered = [r for r in entered if r in carried] + [r for r in carried if r not in entered]
    values: dict[Hashable, list[fx.Node]] = {root: [] for root in ordered}
    for node in assignment.nodes:
        if isinstance(value_of(node), torch.Tensor) and (root := labels.find(node)) in values:
            values[root].append(node)
    return tuple(
        StreamNodes(
            root,
            tuple(
                _newest_alive(values[root], boundary, assignment)
                for boundary in range(len(ends) + 1)
            ),
        )
        for root in ordered
    )


def _newest_alive(
    values: Sequence[fx.Node], boundary: int, assignment: Assignment
) -> fx.Node | None:
    segment_of = assignment.segment_of
    alive = [
        node
        for node in values
        if segment_of[node] <= boundary
        and any(u.op == "output" or segment_of[u] > boundary for u in node.users)
    ]
    return alive[-1] if alive else None
