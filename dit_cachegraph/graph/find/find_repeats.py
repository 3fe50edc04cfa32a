"""Find blocks that are no modules: a run of nodes that repeats, by structure alone.

For loops over plain functions, where no module path tells the blocks apart. Nodes are compared by
what they call and what they make; the period that repeats over most of the graph is the block. It
begins where the fewest elements cross from one to the next:

    norm mul add linear tanh add | norm mul add linear tanh add | ...
                                 h crosses; one node later h and norm(h) would
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import (
    is_weight,
    line_of,
    num_elements_hint,
    shape_key,
    target_key,
    value_of,
)
from dit_cachegraph.plan import Block, BlockSequence

MIN_PERIOD = 4
MAX_PERIOD = 1000


class _Run(NamedTuple):
    """Nodes `start..stop-1` repeat with `period`."""

    start: int
    stop: int
    period: int


def find_repeats(nodes: Sequence[fx.Node]) -> BlockSequence | None:
    """The blocks of the longest repetition that reads weights; None where nothing repeats."""
    first = next((i for i, node in enumerate(nodes) if node.op != "placeholder"), len(nodes))
    run = _longest_run([kind_of(node) for node in nodes[first:]], nodes[first:])
    if run is None:
        return None
    run = _Run(run.start + first, run.stop + first, run.period)
    order = {node: i for i, node in enumerate(nodes)}
    offset = min(range(run.period), key=lambda o: _elements_across(run, o, nodes, order))
    starts = range(run.start + offset, run.stop - run.period + 1, run.period)
    if len(starts) < 2:
        return None
    name = "repeated code" + line_of(nodes[starts[0]])
    return BlockSequence(
        name,
        tuple(
            Block(f"{name}.{i}", start, start + run.period - 1, "function")
            for i, start in enumerate(starts)
        ),
    )


def kind_of(node: fx.Node) -> Hashable:
    """Equal for nodes at the same place of two blocks."""
    weights = tuple(shape_key(a) for a in node.all_input_nodes if is_weight(a))
    makes = shape_key(node) if isinstance(value_of(node), torch.Tensor) else None
    return node.op, target_key(node), len(node.all_input_nodes), weights, makes


def _longest_run(kinds: Sequence[Hashable], nodes: Sequence[fx.Node]) -> _Run | None:
    numbers: dict[Hashable, int] = {}
    ids = np.array([numbers.setdefault(kind, len(numbers)) for kind in kinds])
    reads_weight = [any(is_weight(a) for a in node.all_input_nodes) for node in nodes]
    best = None
    for period in range(MIN_PERIOD, min(MAX_PERIOD, len(ids) // 2) + 1):
        start, length = _longest_true(ids[period:] == ids[:-period])
        is_longer = best is None or length + period > best.stop - best.start
        if length >= period and is_longer and any(reads_weight[start : start + period]):
            best = _Run(start, start + length + period, period)
    return best


def _longest_true(flags: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])


def _elements_across(
    run: _Run, offset: int, nodes: Sequence[fx.Node], order: dict[fx.Node, int]
) -> int:
    """How many elements made in the run cross from its first block to the next one."""
    border = run.start + offset + run.period
    return sum(
        num_elements_hint(value_of(node))
        for node in nodes[run.start : border]
        if any(order[user] >= border for user in node.users)
    )
