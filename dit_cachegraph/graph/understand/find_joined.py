"""Whether a stream is others that a model puts into one before a list of blocks.

FLUX.2, Chroma and AuraFlow run text and image side by side, and then as one sequence:

    double blocks    h, e
    single block 0   x = cat(e, h), handed on with something added
    single block 1   x

Where a region begins among the double blocks, there is no `x` yet. What it adds to `x` is told from
`cat(e, h)` as they are there, so that a hit goes by the latents of its own step. One of them may be
carried by no block: the tokens of a reference picture, which FLUX.3 puts beside those of the image.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_concatenation, shape_key, value_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_identity import summed_in
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.plan import Joined


def with_parts(streams: Sequence[StreamNodes], assignment: Assignment) -> tuple[StreamNodes, ...]:
    """The streams, and what passes the blocks by until it is put into one with some of them, if it
    is there before the first block."""
    carried = {node for stream in streams for node in stream.at}
    passing: dict[fx.Node, int] = {}
    for stream in streams:
        for block, parts, _ in _joined_in(stream, assignment):
            if not carried.isdisjoint(parts):
                early = [n for n in parts if n not in carried and assignment.segment_of[n] <= 0]
                passing |= {n: max(block, passing.get(n, 0)) for n in early}
    num_after = assignment.num_segments - 2
    return (
        *streams,
        *(
            StreamNodes(node, (node,) * (block + 1) + (None,) * (num_after - block))
            for node, block in passing.items()
        ),
    )


def joined_of(
    stream: StreamNodes, streams: Sequence[StreamNodes], assignment: Assignment
) -> Joined | None:
    """What the stream is made of where a block puts others into one and hands on that, plus
    something; None where none does."""
    for block, parts, dim in _joined_in(stream, assignment):
        places = {s.at[block]: i for i, s in enumerate(streams) if s.at[block] is not None}
        if places.keys() >= set(parts):
            return Joined(block, tuple(places[part] for part in parts), dim)
    return None


def _joined_in(
    stream: StreamNodes, assignment: Assignment
) -> Iterator[tuple[int, Sequence[fx.Node], int]]:
    """The block before which a stream isn't there yet, and what it puts into one there, to hand on
    that plus something, along which dimension."""
    boundary, first = next((i, n) for i, n in enumerate(stream.at) if n is not None)
    block = boundary - 1
    if block >= 0:
        for node in summed_in(first, block, assignment):
            parts, dim = _joined_by(node)
            if parts and shape_key(node) == shape_key(first):
                yield block, parts, dim


def _joined_by(node: fx.Node) -> tuple[Sequence[fx.Node], int]:
    """What a node puts into one, and along which dimension; nothing if it does something else."""
    if not is_concatenation(node):
        return (), 0
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    tensors, dim = given.get("tensors"), given.get("dim", given.get("axis", 0))
    value = value_of(node)
    if not isinstance(dim, int) or not isinstance(value, torch.Tensor):
        return (), 0
    return tuple(_nodes(tensors)), dim % value.dim()


def _nodes(tensors: object) -> Iterator[fx.Node]:
    for tensor in tensors if isinstance(tensors, (list, tuple)) else ():
        if isinstance(tensor, fx.Node):
            yield tensor
