"""Which lists are one trunk with the anchor, the list that was found first.

in turn       Latte's spatial and temporal blocks, called one after the other: one sequence of both
              spatial.0, temporal.0, spatial.1, temporal.1, ...
neighbours    FLUX's double and single blocks: the earlier list hands over all that the later one
              carries, and nothing is added on the way

A list carries a value if its first block is the last to read it and hands on one of its layout; of
what the list before it returned, also where it is read once more.
"""

from collections.abc import Iterable, Sequence

from torch import fx

from dit_cachegraph.graph.fx_utils import (
    is_weight,
    module_stack,
    num_elements_hint,
    shape_key,
    tensors_in,
    value_of,
)
from dit_cachegraph.graph.node_effects import written_by
from dit_cachegraph.plan import Block, BlockSequence


def join_lists(
    anchor: BlockSequence, candidates: Sequence[BlockSequence], nodes: Sequence[fx.Node]
) -> tuple[BlockSequence, ...]:
    """The sequences of the trunk in call order, of which the anchor is one or part of one."""
    order = {node: i for i, node in enumerate(nodes)}
    trunk = [_with_lists_in_turn(anchor, candidates, nodes, order)]
    while (before := _neighbour(trunk[0], candidates, nodes, order, ahead=False)) is not None:
        trunk.insert(0, before)
    while (after := _neighbour(trunk[-1], candidates, nodes, order, ahead=True)) is not None:
        trunk.append(after)
    return tuple(trunk)


def has_repeats(sequence: BlockSequence) -> bool:
    """True if two blocks are of one class: an `nn.Sequential` of unlike layers is no block list."""
    return len({block.class_name for block in sequence.blocks}) < len(sequence.blocks)


def is_chained(sequence: BlockSequence, nodes: Sequence[fx.Node]) -> bool:
    """True if the blocks' spans are apart and each block depends on the one before it."""
    for before, after in zip(sequence.blocks, sequence.blocks[1:], strict=False):
        if before.last >= after.first or not _feeds(before, after, nodes):
            return False
    return True


def _with_lists_in_turn(
    anchor: BlockSequence,
    candidates: Sequence[BlockSequence],
    nodes: Sequence[fx.Node],
    order: dict[fx.Node, int],
) -> BlockSequence:
    """The anchor with the blocks of the lists that are called in turn with it."""
    for other in candidates:
        if has_repeats(other) and are_in_turn(anchor, other) and _carries(other, nodes, order):
            blocks = sorted((*anchor.blocks, *other.blocks), key=lambda block: block.first)
            names = [anchor.name, other.name]
            if blocks[0] in other.blocks:
                names.reverse()
            joined = BlockSequence(" and ".join(names), tuple(blocks))
            if is_chained(joined, nodes):
                anchor = joined
    return anchor


def are_in_turn(sequence: BlockSequence, other: BlockSequence) -> bool:
    """True if one begins before the other ends, and the other way round."""
    is_ahead = sequence.blocks[0].first < other.blocks[-1].last
    return sequence != other and is_ahead and other.blocks[0].first < sequence.blocks[-1].last


def _carries(sequence: BlockSequence, nodes: Sequence[fx.Node], order: dict[fx.Node, int]) -> bool:
    """True if the list is one of blocks, not of layers, and hands on what it is given."""
    head = sequence.blocks[0]
    return not is_layer(head, nodes) and bool(_entering(head, nodes, order))


def is_layer(block: Block, nodes: Sequence[fx.Node]) -> bool:
    """True for a module that calls no other (a linear layer, an activation)."""
    inside = nodes[block.first : block.last + 1]
    stacks = [[path for _, path, _ in module_stack(node)] for node in inside]
    own = [stack for stack in stacks if block.path in stack]
    return bool(own) and all(stack[-1] == block.path for stack in own)


def _feeds(before: Block, after: Block, nodes: Sequence[fx.Node]) -> bool:
    reached = reached_from(before, after.first, nodes)
    return any(
        arg in reached
        for node in nodes[after.first : after.last + 1]
        for arg in node.all_input_nodes
    )


def reached_from(block: Block, stop: int, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The block's own nodes, what they write to, and what depends on them before node `stop`."""
    reached = set(nodes[block.first : block.last + 1])
    for node in nodes[block.first : block.last + 1]:
        reached.update(written_by(node))
    for node in nodes[block.last + 1 : stop]:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return reached


def _neighbour(
    sequence: BlockSequence,
    candidates: Sequence[BlockSequence],
    nodes: Sequence[fx.Node],
    order: dict[fx.Node, int],
    *,
    ahead: bool,
) -> BlockSequence | None:
    first, last = sequence.blocks[0].first, sequence.blocks[-1].last
    for other in candidates:
        if is_layer(other.blocks[0], nodes):
            continue
        if ahead:
            if other.blocks[0].first > last and _hands_over(sequence, other, nodes, order):
                return other
        elif other.blocks[-1].last < first and _hands_over(other, sequence, nodes, order):
            return other
    return None


def _hands_over(
    before: BlockSequence,
    after: BlockSequence,
    nodes: Sequence[fx.Node],
    order: dict[fx.Node, int],
) -> bool:
    """True if all that `after` carries comes out of `before`, and nothing is added on the way. It
    may read what `before` hands on once more, as a skip."""
    if not (is_chained(before, nodes) and is_chained(after, nodes)):
        return False
    last, head = before.blocks[-1], after.blocks[0]
    reached = reached_from(last, head.first, nodes)
    leaving = _leaving(last, nodes, order)
    entering = _entering(head, nodes, order, leaving)
    if not entering or not all(node in reached for node in entering):
        return False
    beside_skips = [node for node in entering if node not in leaving]
    return _num_elements(leaving) in (_num_elements(entering), _num_elements(beside_skips))


def _entering(
    block: Block,
    nodes: Sequence[fx.Node],
    order: dict[fx.Node, int],
    returned: Sequence[fx.Node] = (),
) -> list[fx.Node]:
    """What the block carries. What the block before `returned` may be read later too: a ControlNet
    collects it."""
    handed_on = {shape_key(node) for node in _leaving(block, nodes, order)}
    inside = nodes[block.first : block.last + 1]
    found = dict.fromkeys(
        arg for node in inside for arg in node.all_input_nodes if order[arg] < block.first
    )
    return [
        arg
        for arg in found
        if not is_weight(arg)
        and (arg in returned or max(order[user] for user in arg.users) <= block.last)
        and shape_key(arg) in handed_on
    ]


def _leaving(block: Block, nodes: Sequence[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    return [
        node
        for node in nodes[block.first : block.last + 1]
        if any(order[user] > block.last for user in node.users)
        and any(True for _ in tensors_in(value_of(node)))
    ]


def _num_elements(nodes: Iterable[fx.Node]) -> int:
    return sum(num_elements_hint(value_of(node)) for node in nodes)
