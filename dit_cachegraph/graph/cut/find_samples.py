"""Where the samples of a batch lie among the values of a cut graph, for batches in which each
sample has a request of its own.

    latents [B, L, C] -> prologue -> h [B, L, D], temb [B, D], rotary [L, d] -> blocks -> h
    rows: latents, h, temb       no rows: rotary       B free: some rows can be run alone

A batch whose size is a number in the graph has rows as well, told by that number, and its blocks
run for all of them. So they do where a block may mix rows, or reads what has them elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence

import sympy
import torch
from torch import fx

from dit_cachegraph.graph.cut.borders import Borders
from dit_cachegraph.graph.fx_utils import (
    free_symbols,
    is_size_argument,
    is_weight,
    value_of,
)
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.check_rows import leads, why_rows_meet
from dit_cachegraph.plan import ArgumentRoles, Samples, Segment

RANKS = "ranks share each of its samples, and agree on one decision a call"
NESTED = "a nested tensor (`torch.nested`) can't be taken apart into samples"
FIXED = "the size of the batch is a fixed number in the compiled graph"


def find_samples(
    assignment: Assignment,
    borders: Borders,
    slots: Mapping[fx.Node, int],
    segments: Sequence[Segment],
    roles: ArgumentRoles,
    probe: fx.Node,
) -> Samples:
    """Where the samples lie. `probe` is the stream that is compared, as it enters the trunk."""
    values = {slot: borders.fake(node) for node, slot in slots.items() if not is_weight(node)}
    size = _batch_of(values, roles, probe)
    if size is None:
        return Samples(why_together="no dimension of its latents is known to be the batch")
    if any(isinstance(value, torch.Tensor) and value.is_nested for value in values.values()):
        return Samples(why_together=NESTED)
    rows = frozenset(slot for slot, value in values.items() if _is_row(value, size))
    made = {slot for segment in segments[1:-1] for slot in segment.outputs if slot is not None}
    if not made <= rows or slots[probe] not in rows:
        return Samples(why_together="its blocks hand on what doesn't have the batch first")
    if not isinstance(size, sympy.Symbol):
        return Samples(rows, why_whole=FIXED)
    elsewhere = {s for s, value in values.items() if size in free_symbols([value])} - rows
    sizes = {s for node, s in slots.items() if is_size_argument(node) and _is_size(node, size)}
    if any(slot in elsewhere for slot in (*roles.latents, *roles.timesteps, *roles.conditioning)):
        return Samples(why_together="an argument has the batch in another dimension than the first")
    read = {slot for segment in segments[1:-1] for slot in segment.inputs}
    why_whole = None
    if read & (elsewhere - sizes):
        why_whole = "its blocks read what has the batch in another dimension than the first"
    return Samples(
        rows, frozenset(sizes), None, why_whole or why_rows_meet(_nodes_of_blocks(assignment), size)
    )


def _batch_of(
    values: Mapping[int, object], roles: ArgumentRoles, probe: fx.Node
) -> sympy.Symbol | int | None:
    """The size of the batch: of the latents, or of the stream where those don't come here."""
    first = values[roles.latents[0]] if roles.latents else value_of(probe)
    if not isinstance(first, torch.Tensor) or first.dim() == 0:
        return None
    size = first.shape[0]
    if isinstance(size, torch.SymInt) and not size.node.expr.is_Integer:
        expression = size.node.expr
        return expression if isinstance(expression, sympy.Symbol) else None
    return int(size)


def _is_row(value: object, size: sympy.Symbol | int) -> bool:
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return False
    if isinstance(size, sympy.Symbol):
        return leads(value, size)
    return not isinstance(value.shape[0], torch.SymInt) and value.shape[0] == size


def _is_size(node: fx.Node, size: sympy.Symbol) -> bool:
    value = value_of(node)
    return isinstance(value, torch.SymInt) and value.node.expr == size


def _nodes_of_blocks(assignment: Assignment) -> Iterable[fx.Node]:
    num_blocks = len(assignment.blocks)
    return (n for n in assignment.nodes if 0 < assignment.segment_of.get(n, 0) <= num_blocks)
