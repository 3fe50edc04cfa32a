"""Which lists are one trunk with the anchor, the list that was found first.

in turn       Latte's spatial and temporal blocks, called one after the other: one sequence of both
              spatial.0, temporal.0, spatial.1, temporal.1, ...
neighbours    FLUX's double and single blocks: the earlier list hands over all that the later one
              carries, and nothing is added on the way; or all of it that is denoised, and the rest
              depends on nothing that is (FLUX.3's image blocks, before those that have text too)

A list carries a value if its first block is the last to read it and hands on one of its layout; of
what the list before it returned, also where it is read once more.
"""

from collections.abc import Sequence

from torch import fx

from dit_cachegraph.graph.find.handed_on import (
    Flow,
    Handover,
    given_to,
    handover,
    is_chained,
    num_elements,
)
from dit_cachegraph.graph.find.latents_ahead import is_of_latents_alone
from dit_cachegraph.graph.find.made_of_latents import made_of_latents
from dit_cachegraph.graph.fx_utils import module_stack
from dit_cachegraph.plan import Block, BlockSequence


def join_lists(
    anchor: BlockSequence, candidates: Sequence[BlockSequence], nodes: Sequence[fx.Node]
) -> tuple[BlockSequence, ...]:
    """The sequences of the trunk in call order, of which the anchor is one or part of one."""
    order = {node: i for i, node in enumerate(nodes)}
    flow = Flow(nodes, order, made_of_latents(nodes))
    trunk = [_with_lists_in_turn(anchor, candidates, flow)]
    while (before := _neighbour(trunk[0], candidates, flow, ahead=False)) is not None:
        trunk.insert(0, before)
    while (after := _neighbour(trunk[-1], candidates, flow, ahead=True)) is not None:
        trunk.append(after)
    return tuple(trunk)


def has_repeats(sequence: BlockSequence) -> bool:
    """True if two blocks are of one class: an `nn.Sequential` of unlike layers is no block list."""
    return len({block.class_name for block in sequence.blocks}) < len(sequence.blocks)


def _with_lists_in_turn(
    anchor: BlockSequence, candidates: Sequence[BlockSequence], flow: Flow
) -> BlockSequence:
    """The anchor with the blocks of the lists that are called in turn with it."""
    for other in candidates:
        if has_repeats(other) and are_in_turn(anchor, other) and _carries(other, flow):
            blocks = sorted((*anchor.blocks, *other.blocks), key=lambda block: block.first)
            names = [anchor.name, other.name]
            if blocks[0] in other.blocks:
                names.reverse()
            joined = BlockSequence(" and ".join(names), tuple(blocks))
            if is_chained(joined, flow.nodes):
                anchor = joined
    return anchor


def are_in_turn(sequence: BlockSequence, other: BlockSequence) -> bool:
    """True if one begins before the other ends, and the other way round."""
    is_ahead = sequence.blocks[0].first < other.blocks[-1].last
    return sequence != other and is_ahead and other.blocks[0].first < sequence.blocks[-1].last


def _carries(sequence: BlockSequence, flow: Flow) -> bool:
    """True if the list is one of blocks, not of layers, and hands on what it is given."""
    head = sequence.blocks[0]
    return not is_layer(head, flow.nodes) and bool(given_to(head, flow))


def is_layer(block: Block, nodes: Sequence[fx.Node]) -> bool:
    """True for a module that calls no other (a linear layer, an activation)."""
    inside = nodes[block.first : block.last + 1]
    stacks = [[path for _, path, _ in module_stack(node)] for node in inside]
    own = [stack for stack in stacks if block.path in stack]
    return bool(own) and all(stack[-1] == block.path for stack in own)


def _neighbour(
    sequence: BlockSequence,
    candidates: Sequence[BlockSequence],
    flow: Flow,
    *,
    ahead: bool,
) -> BlockSequence | None:
    first, last = sequence.blocks[0].first, sequence.blocks[-1].last
    for other in candidates:
        if is_layer(other.blocks[0], flow.nodes):
            continue
        if ahead:
            if other.blocks[0].first > last and _goes_on(sequence, other, flow):
                return other
        elif other.blocks[-1].last < first and _goes_on(other, sequence, flow):
            return other
    return None


def _goes_on(before: BlockSequence, after: BlockSequence, flow: Flow) -> bool:
    """True if `after` goes on with the latents as `before` hands them over."""
    between, of_latents = handover(before, after, flow), flow.made_of_latents
    if between is None:
        return False
    if is_of_latents_alone(between, of_latents):
        return True
    is_of_text = bool(of_latents) and of_latents.isdisjoint(between.returned)
    return not is_of_text and _is_of_all(between)


def _is_of_all(between: Handover) -> bool:
    """True if all that the later list carries comes out of the earlier one, and nothing is added on
    the way. It may read what that hands on once more, as a skip."""
    given, returned = between.given, between.returned
    if not given or not all(node in between.reached for node in given):
        return False
    beside_skips = [node for node in given if node not in returned]
    return num_elements(returned) in (num_elements(given), num_elements(beside_skips))
