"""What a block of a list is given by those before it, and what it hands on."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from torch import fx

from dit_cachegraph.graph.fx_utils import (
    is_weight,
    num_elements_hint,
    shape_key,
    tensors_in,
    value_of,
)
from dit_cachegraph.graph.node_effects import written_by
from dit_cachegraph.plan import Block, BlockSequence


class Flow(NamedTuple):
    """The nodes of a graph, the place of each, and those that have something of the latents."""

    nodes: Sequence[fx.Node]
    order: Mapping[fx.Node, int]
    made_of_latents: frozenset[fx.Node]


class Handover(NamedTuple):
    """From one list to another: what the last block of the first `returned`, all that was `reached`
    from there before the second, and what the first block of that is `given`."""

    returned: Sequence[fx.Node]
    reached: Set[fx.Node]
    given: Sequence[fx.Node]


def handover(before: BlockSequence, after: BlockSequence, flow: Flow) -> Handover | None:
    """None where the blocks of either don't feed each other."""
    if not (is_chained(before, flow.nodes) and is_chained(after, flow.nodes)):
        return None
    last, head = before.blocks[-1], after.blocks[0]
    returned = handed_on_by(last, flow)
    reached = reached_from(last, head.first, flow.nodes)
    return Handover(returned, reached, given_to(head, flow, returned))


def is_chained(sequence: BlockSequence, nodes: Sequence[fx.Node]) -> bool:
    """True if the blocks' spans are apart and each block depends on the one before it."""
    for before, after in zip(sequence.blocks, sequence.blocks[1:], strict=False):
        if before.last >= after.first or not _feeds(before, after, nodes):
            return False
    return True


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


def given_to(block: Block, flow: Flow, returned: Sequence[fx.Node] = ()) -> list[fx.Node]:
    """What a block reads last of all, if it hands on something of that layout: what it carries.
    What the block before `returned` may be read later too: a ControlNet collects it."""
    handed_on = {shape_key(node) for node in handed_on_by(block, flow)}
    inside = flow.nodes[block.first : block.last + 1]
    found = dict.fromkeys(
        arg for node in inside for arg in node.all_input_nodes if flow.order[arg] < block.first
    )
    return [
        arg
        for arg in found
        if not is_weight(arg)
        and (arg in returned or max(flow.order[user] for user in arg.users) <= block.last)
        and shape_key(arg) in handed_on
    ]


def handed_on_by(block: Block, flow: Flow) -> list[fx.Node]:
    """The tensors of a block that are read after it."""
    return [
        node
        for node in flow.nodes[block.first : block.last + 1]
        if any(flow.order[user] > block.last for user in node.users)
        and any(True for _ in tensors_in(value_of(node)))
    ]


def num_elements(nodes: Iterable[fx.Node]) -> int:
    return sum(num_elements_hint(value_of(node)) for node in nodes)
