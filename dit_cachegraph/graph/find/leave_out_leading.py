"""Leave out of a first block what stands at its beginning alone: it is the prologue's.

A hook on the first block works on what all of them are handed, such as one that gives each rank its
part of the tokens. With it inside, the block would hand on nothing that it was given, and would be
compiled apart from its siblings:

    blocks.0:  c = chunk(h, 2); h = c[0]; n = norm(h); ...      blocks.1:  n = norm(h); ...
    ->  prologue:  c = chunk(h, 2); h = c[0]                    blocks.0:  n = norm(h); ...
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from dit_cachegraph.graph.structure import structure_of
from dit_cachegraph.plan import Block, BlockSequence


def leave_out_leading(sequence: BlockSequence, nodes: Sequence[fx.Node]) -> BlockSequence:
    """The sequence, whose first block begins where its siblings do, if the rest of it is as they
    are."""
    first, *others = sequence.blocks
    alike = next((block for block in others if block.class_name == first.class_name), None)
    if alike is None or _size(first) <= _size(alike):
        return sequence
    theirs = structure_of(nodes[alike.first : alike.last + 1]).rows
    for begin in range(first.first, first.last - _size(alike) + 2):
        if structure_of(nodes[begin : first.last + 1]).rows == theirs:
            return replace(sequence, blocks=(replace(first, first=begin), *others))
    return sequence


def _size(block: Block) -> int:
    return block.last - block.first + 1
