"""Refuse what a skipped block must not hide: writes to values that live outside it, and RNG.

What a node writes to is found by storage: fake views share the storage of their base. A write to a
buffer that its own segment made (the rotary embedding of Wan fills an `empty_like`) is sound; one
to a value from elsewhere is not:

    block:  h = torch.empty_like(q); h[..., 0::2] = x      # made here: kept
    block:  hidden += control                              # hidden came in: refused
"""

from dataclasses import dataclass

from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.fx_utils import is_weight, line_of, storages_of, target_name
from dit_cachegraph.graph.node_effects import random_node, writes_of
from dit_cachegraph.graph.understand.assign_nodes import ARGUMENT, Assignment, segment_name


def check_effects(assignment: Assignment) -> None:
    """Raise `CannotCut` at the first effect that a cut or a skipped block would change."""
    made_in = _where_storages_come_from(assignment)
    for i, node in enumerate(assignment.nodes):
        segment = assignment.segment_of.get(node, ARGUMENT)
        if segment == ARGUMENT:
            continue
        for writer, written in writes_of(node):
            _check_write(writer, i, written, made_in, assignment)
        drawing = random_node(node)
        if 1 <= segment <= len(assignment.blocks) and drawing is not None:
            raise CannotCut(
                f"{segment_name(segment, assignment.blocks)} draws random numbers "
                f"(`{target_name(drawing)}`{line_of(drawing)}): a reused step would draw none; "
                "call `eval()` on the model, or draw them before the blocks"
            )


@dataclass(frozen=True, slots=True)
class _Origins:
    """Of every storage, the first node that has it, as (its segment, its place in the graph)."""

    of_storage: dict[int, tuple[int, int]]

    def of(self, node: fx.Node) -> set[tuple[int, int]]:
        return {self.of_storage[storage] for storage in storages_of(node)}


def _where_storages_come_from(assignment: Assignment) -> _Origins:
    found: dict[int, tuple[int, int]] = {}
    for i, node in enumerate(assignment.nodes):
        segment = assignment.segment_of.get(node)
        if segment is not None:
            for storage in storages_of(node):
                found.setdefault(storage, (segment, i))
    return _Origins(found)


def _check_write(
    writer: fx.Node, i: int, written: fx.Node, made: _Origins, assignment: Assignment
) -> None:
    segment = assignment.segment_of[assignment.nodes[i]]
    first_block = assignment.blocks[0].first
    outside = {
        (where, place)
        for where, place in made.of(written)
        # What was made among the blocks was moved before them with all that writes to it.
        if where != segment or (segment == 0 and place < first_block < i)
    }
    # The prologue runs before anything is kept, and the epilogue after everything is.
    is_before = segment == 0 and i < first_block
    if not outside or is_before or segment == assignment.num_segments - 1:
        return
    origins = {where for where, _ in outside}
    origin = min(origins)
    where = (
        "an argument of the model"
        if origin == ARGUMENT
        else "a value of " + segment_name(origin, assignment.blocks)
    )
    raise CannotCut(
        f"{_where(segment, i, assignment)} writes in place (`{target_name(writer)}`"
        f"{line_of(writer)}) to `{written.name}`, {where}, which a reused step would leave "
        f"unwritten; {_advice_on(written)}"
    )


def _advice_on(written: fx.Node) -> str:
    if is_weight(written):
        return (
            "call `eval()` on the model if only training does this, or write it outside of the "
            "blocks"
        )
    return "write `x = x + y` instead of `x += y` there"


def _where(segment: int, i: int, assignment: Assignment) -> str:
    if segment == 0 and i > assignment.blocks[0].first:
        return "the code between the blocks"
    return segment_name(segment, assignment.blocks)
