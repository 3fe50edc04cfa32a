"""Find layers that are no modules: their parts are called one by one, the layer itself never.

a list of lists     for attn, ff in layers:             layers.0.0, layers.0.1, layers.1.0, ...
lists side by side  for attn, ff in zip(attns, ffs):    attns.0, ffs.0, attns.1, ...

All that is called of `layers.0` is one block, and so is the round of `attns.0` and `ffs.0` where
what they make is added to what passes them by. What is done between two blocks is no part's: the
border lies where the fewest elements cross, so that a trailing `+ x` is the earlier block's.

    attn | + x | ff | + x | attn | + x | ff | + x | head
    -------- layers.0 -----|------- layers.1 -----| head
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from dit_cachegraph.graph.find.find_repeats import kind_of
from dit_cachegraph.graph.find.handed_on import is_chained, reached_from
from dit_cachegraph.graph.find.join_lists import are_in_turn, is_layer
from dit_cachegraph.graph.fx_utils import (
    num_elements_hint,
    shape_key,
    target_key,
    value_of,
)
from dit_cachegraph.plan import Block, BlockSequence


class ModuleCall(NamedTuple):
    """One node inside the call of a module: its place, the call's key, path and class."""

    node: int
    key: str
    path: str
    class_name: str


def with_layers(
    lists: Sequence[BlockSequence], calls: Sequence[ModuleCall], nodes: Sequence[fx.Node]
) -> list[BlockSequence]:
    """The lists of called modules, with lists of layers in the place of those of their parts."""
    kept = list(lists)
    for layers in _lists_of_lists(calls):
        prefixes = tuple({block.path + "." for block in layers.blocks})
        parts = [s for s in kept if (s.name + ".").startswith(prefixes)]
        if _repeat(layers) and not any(_are_stages(layers, part, nodes) for part in parts):
            others = [s for s in kept if s not in parts]
            kept = [*others, _with_borders(layers, nodes)]
    return _with_rounds(kept, nodes)


def _lists_of_lists(calls: Sequence[ModuleCall]) -> list[BlockSequence]:
    """Lists whose items are never called, but parts of them; the innermost such lists."""
    called = {call.path for call in calls}
    found: dict[str, list[Block]] = defaultdict(list)
    parts: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    outermost = {call.node: call for call in reversed(calls)}
    for i in sorted(outermost):
        call = outermost[i]
        item = _item_of(call.path, called)
        if item is None:
            continue
        blocks = found[item.rpartition(".")[0]]
        if not blocks or blocks[-1].path != item:
            blocks.append(Block(item, i, i, ""))
        blocks[-1] = replace(blocks[-1], last=i)
        parts[item, blocks[-1].first][call.key] = call.class_name
    return [
        BlockSequence(
            name,
            tuple(
                replace(b, class_name=", ".join(parts[b.path, b.first].values())) for b in blocks
            ),
        )
        for name, blocks in found.items()
    ]


def _item_of(path: str, called: set[str]) -> str | None:
    """The innermost item of a list that holds this module and is never called: `layers.0` of
    `layers.0.attn`."""
    container = path.rpartition(".")[0]
    while "." in container:
        outer, _, index = container.rpartition(".")
        if index.isdigit():
            return None if container in called else container
        container = outer
    return None


def _repeat(layers: BlockSequence) -> bool:
    """True if two layers have the same parts."""
    return len({block.class_name for block in layers.blocks}) < len(layers.blocks)


def _are_stages(layers: BlockSequence, parts: BlockSequence, nodes: Sequence[fx.Node]) -> bool:
    """True for layers that are lists of blocks, one after the other and some of them alike: the
    parts of a layer do different things, or are single operations."""
    whole = {block.path: block.class_name for block in layers.blocks}
    done = {tuple(map(kind_of, nodes[b.first : b.last + 1])) for b in parts.blocks}
    return (
        len(done) < len(parts.blocks)
        and whole.get(parts.name) == ", ".join(block.class_name for block in parts.blocks)
        and len({block.class_name for block in parts.blocks}) == 1
        and is_chained(parts, nodes)
        and not is_layer(parts.blocks[0], nodes)
    )


def _with_rounds(lists: Sequence[BlockSequence], nodes: Sequence[fx.Node]) -> list[BlockSequence]:
    """The lists, with two in one whose blocks are called in turn and added to what passes by."""
    kept: list[BlockSequence] = []
    for sequence in lists:
        joined = ((i, _rounds(other, sequence, nodes)) for i, other in enumerate(kept))
        found = next(((i, rounds) for i, rounds in joined if rounds is not None), None)
        if found is None:
            kept.append(sequence)
        else:
            kept[found[0]] = _with_borders(found[1], nodes)
    return kept


def _rounds(
    one: BlockSequence, other: BlockSequence, nodes: Sequence[fx.Node]
) -> BlockSequence | None:
    """One block a round of two lists, of which each is called once a round."""
    if len(one.blocks) != len(other.blocks) or not are_in_turn(one, other):
        return None
    first, second = sorted((one, other), key=lambda s: s.blocks[0].first)
    pairs = list(zip(first.blocks, second.blocks, strict=True))
    calls = [block for pair in pairs for block in pair]
    if not all(a.last < b.first for a, b in itertools.pairwise(calls)):
        return None
    if not all(_is_passed(*calls[i : i + 3], nodes=nodes) for i in range(len(calls) - 2)):
        return None
    name = f"{first.name} and {second.name}"
    return BlockSequence(
        name,
        tuple(
            Block(f"{name}.{i}", a.first, b.last, f"{a.class_name}, {b.class_name}")
            for i, (a, b) in enumerate(pairs)
        ),
    )


def _is_passed(before: Block, block: Block, after: Block, *, nodes: Sequence[fx.Node]) -> bool:
    """True if what the block makes is added to what came past it from the block before."""
    came = reached_from(before, block.first, nodes)
    made = reached_from(block, after.first, nodes)
    return any(
        not made.isdisjoint(node.all_input_nodes)
        and any(a in came and shape_key(a) == shape_key(node) for a in node.all_input_nodes)
        for node in nodes[block.last + 1 : after.first]
    )


def _with_borders(layers: BlockSequence, nodes: Sequence[fx.Node]) -> BlockSequence:
    """The layers with what is done between them, cut where the fewest elements cross. What follows
    the last one and precedes the first is theirs as far as it is so for the others."""
    blocks = list(layers.blocks)
    if len(blocks) < 2 or not is_chained(layers, nodes):
        return layers
    cuts = [_cut(a.last, b.first, nodes) for a, b in itertools.pairwise(blocks)]
    num_after, num_before = cuts[-1] - blocks[-2].last, blocks[1].first - cuts[0] - 1
    start, stop = blocks[0].first, blocks[-1].last
    if _do_the_same(nodes, blocks[1].first - num_before, start - num_before, num_before):
        start -= num_before
    if _do_the_same(nodes, blocks[-2].last + 1, stop + 1, num_after):
        stop += num_after
    firsts, lasts = [start, *(cut + 1 for cut in cuts)], [*cuts, stop]
    moved = [replace(b, first=f, last=e) for b, f, e in zip(blocks, firsts, lasts, strict=True)]
    return BlockSequence(layers.name, tuple(moved))


def _do_the_same(nodes: Sequence[fx.Node], one: int, other: int, num_nodes: int) -> bool:
    keys = [[target_key(n) for n in nodes[i : i + num_nodes]] for i in (one, other)]
    return other >= 0 and keys[0] == keys[1]


def _cut(last: int, first: int, nodes: Sequence[fx.Node]) -> int:
    """The last node of the block before, of those from `last` to the one before `first`."""
    order = {node: i for i, node in enumerate(nodes[: first + 1])}
    best, fewest, crossing = last, 0, 0
    for i in range(last + 1, first):
        made_later = [user for user in nodes[i].users if order.get(user, first) > i]
        crossing += num_elements_hint(value_of(nodes[i])) if made_later else 0
        for arg in nodes[i].all_input_nodes:
            if arg.op != "placeholder" and all(order.get(user, first) <= i for user in arg.users):
                crossing -= num_elements_hint(value_of(arg))
        if crossing < fewest:
            best, fewest = i, crossing
    return best
