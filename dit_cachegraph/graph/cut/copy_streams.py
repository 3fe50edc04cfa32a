"""Hand a stream on contiguous where it is an argument that the first block is given as it came.

What the prologue makes of the latents crosses its border contiguous. Where it makes nothing of
them, and the caller's tensor is a view (a permutation, a slice), the first block would be given
another layout than what the blocks hand on, and be left out of the stream:

    y = blk0(latents);  z = blk1(y)    ->    h = latents.contiguous();  y = blk0(h);  z = blk1(y)
"""

from collections.abc import Sequence

import torch
from torch import fx

from dit_cachegraph.graph.cut.borders import contiguous_fake
from dit_cachegraph.graph.fx_utils import layout_key, value_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes


def copy_streams(
    gm: fx.GraphModule, assignment: Assignment, streams: Sequence[StreamNodes]
) -> bool:
    """Give the blocks a contiguous copy of each argument that enters the trunk as a stream and is
    none. What the graph computes stays the same. True if there is such an argument: then the
    assignment is that of another graph."""
    copies = copied_streams(streams)
    first, last = assignment.blocks[0].first, assignment.blocks[-1].last
    for argument, fake in copies.items():
        # Not before: code ahead of the blocks may write to the argument.
        with gm.graph.inserting_before(assignment.nodes[first]):
            copy = gm.graph.call_method("contiguous", (argument,))
        copy.meta["example_value"] = fake
        for node in assignment.nodes[first : last + 1]:
            if assignment.segment_of[node] > 0:  # The prologue has what it was traced with.
                node.replace_input_with(argument, copy)
    if copies:
        gm.recompile()
    return bool(copies)


def copied_streams(streams: Sequence[StreamNodes]) -> dict[fx.Node, torch.Tensor]:
    """The arguments that blocks are given a copy of, and what the copy is."""
    entering = dict.fromkeys(s.at[0] for s in streams)
    arguments = [n for n in entering if n is not None and n.op == "placeholder"]
    return {n: fake for n in arguments if (fake := _contiguous_if_not(value_of(n))) is not None}


def _contiguous_if_not(value: object) -> torch.Tensor | None:
    assert isinstance(value, torch.Tensor), "a stream is a tensor"
    contiguous = contiguous_fake(value)
    return contiguous if layout_key(value) != layout_key(contiguous) else None
