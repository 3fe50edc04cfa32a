"""Name what the blocks carry in the field's terms: `Pattern_0` to `Pattern_5`, or a general form.

hidden, text -> block -> text, hidden           Pattern_1 (h, e -> e, h)
hidden -> block (reads text) -> hidden          Pattern_2 (h, e -> h)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from dit_cachegraph.call_stack import model_being_called
from dit_cachegraph.exc import CannotCut, NoBlocks
from dit_cachegraph.graph.find.check_fragment import largest_list
from dit_cachegraph.graph.fx_utils import call_of, is_weight, target_name, value_of
from dit_cachegraph.graph.structure import structure_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.block_source import return_order
from dit_cachegraph.graph.understand.check_real import check_real
from dit_cachegraph.graph.understand.find_roles import choose_probe, find_roles
from dit_cachegraph.graph.understand.find_streams import StreamNodes, find_streams
from dit_cachegraph.plan import ArgumentRoles, BlockListReport, BlockSequence

_UNPACKING = frozenset(("getitem", "slice", "chunk", "flatten", "unbind", "split"))


@dataclass(frozen=True, slots=True)
class Pattern:
    """What the dataflow says: the streams, which of them is the image, what the arguments are."""

    streams: tuple[StreamNodes, ...]
    probe: StreamNodes
    roles: ArgumentRoles
    block_lists: tuple[BlockListReport, ...]


def match_pattern(sequences: Sequence[BlockSequence], assignment: Assignment) -> Pattern:
    """The streams of the trunk, the image stream among them, and the names of the patterns.

    Raises:
        CannotCut: no stream enters the first block and leaves it, so that nothing can be compared,
            or one is complex.
    """
    streams = find_streams(assignment)
    inside = range(1, assignment.num_segments - 1)
    carried = [n for s in streams for n in s.at if n is not None]
    check_real(n for n in carried if assignment.segment_of[n] in inside)
    probe = choose_probe(streams, assignment)
    if probe is None:
        raise _no_probe(assignment)
    roles = find_roles(assignment, streams, probe)
    return Pattern(streams, probe, roles, _name_patterns(sequences, streams, probe, assignment))


def _no_probe(assignment: Assignment) -> CannotCut:
    """The refusal of blocks without a residual. What isn't of the model's largest list was only
    found since that list wasn't."""
    block, model = assignment.blocks[0], model_being_called()
    found = None if model is None else largest_list(model)
    where = call_of(block, assignment.nodes)
    if found is not None and not f"{block.path}.".startswith(f"{found[0]}."):
        return NoBlocks(
            f"no modules of the blocks of {type(model).__name__}, `{found[0]}`, are called in this "
            f"graph so that each feeds the next; of what is, {block.path}{where} keeps no residual"
        )
    return CannotCut(
        f"{block.path}{where} hands on nothing that it was given: "
        "there is no residual to compare steps by"
    )


def _name_patterns(
    sequences: Sequence[BlockSequence],
    streams: Sequence[StreamNodes],
    probe: StreamNodes,
    assignment: Assignment,
) -> tuple[BlockListReport, ...]:
    """The forward pattern of every block list: `Pattern_0` ... `Pattern_5`, or the general form."""
    reports = []
    start = 0
    for sequence in sequences:
        inside = range(start, start + len(sequence.blocks))
        pattern = _pattern(inside, streams, probe, assignment)
        reports.append(BlockListReport(sequence.name, len(sequence.blocks), pattern))
        start += len(sequence.blocks)
    return tuple(reports)


def _pattern(
    inside: range, streams: Sequence[StreamNodes], probe: StreamNodes, assignment: Assignment
) -> str:
    own = [s for s in streams if any(s.moves_in(i) for i in inside)]
    # Where the streams are put into one before a list, it is carried from the second block on.
    first = max(inside, key=lambda i: len(_carried(i, own)))
    carried = _carried(first, own)
    extra = [s for s in streams if s.at[first] is not None and s not in carried]
    if not carried or len(carried) > 2:
        return f"general form: {len(carried) + len(extra)} in, {len(carried)} out"
    ending = [s for s in carried if s.reaches_the_end]
    hidden = probe if probe in carried else (ending or carried)[0]
    if len(carried) == 1:
        reads_text = _reads_an_outside_sequence(first, hidden, streams, assignment)
        return "Pattern_2 (h, e -> h)" if reads_text else "Pattern_3 (h -> h)"
    names = {hidden.at[first + 1]: "h"}
    names |= {s.at[first + 1]: "e" for s in carried if s is not hidden}
    order = return_order(assignment.nodes, assignment.blocks[first], names)
    if order is None:
        return "Pattern_0 or Pattern_1 (h, e -> h and e)"
    return "Pattern_0 (h, e -> h, e)" if order == ("h", "e") else "Pattern_1 (h, e -> e, h)"


def _carried(block: int, streams: Sequence[StreamNodes]) -> list[StreamNodes]:
    """The streams that enter this block and leave it."""
    return [s for s in streams if s.at[block] is not None and s.at[block + 1] is not None]


def _reads_an_outside_sequence(
    position: int, hidden: StreamNodes, streams: Sequence[StreamNodes], assignment: Assignment
) -> bool:
    """True if the block reads a floating-point sequence with as many dimensions as its stream and
    another length, from outside the trunk: text that it attends to and doesn't carry."""
    block = assignment.blocks[position]
    stream = hidden.at[position]
    inside = assignment.nodes[block.first : block.last + 1]
    own = {n for s in streams for n in s.at if n is not None}
    shape = _shape_of(stream)
    for node in structure_of(inside).entries:
        other = _shape_of(node)
        if node in own or is_weight(node) or len(other) != len(shape) or len(shape) < 3:
            continue
        # Rotary tables are broadcast over the batch and modulation over the tokens.
        is_sequence = other[1] not in ("1", shape[1]) and other[0] == shape[0]
        if is_sequence and not _is_unpacked(node, inside):
            return True
    return False


def _is_unpacked(node: fx.Node, inside: Sequence[fx.Node]) -> bool:
    """True for a table whose rows have names of their own: shift, scale and gate."""
    users = [user for user in inside if node in user.all_input_nodes]
    return all(target_name(user) in _UNPACKING for user in users)


def _shape_of(node: fx.Node | None) -> tuple[object, ...]:
    value = value_of(node) if node is not None else None
    return tuple(str(s) for s in value.shape) if isinstance(value, torch.Tensor) else ()
