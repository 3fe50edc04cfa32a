"""Whether a block adds to a stream, or makes a new one.

Between two blocks that add, a stream's residual (what was added) is replayed: the new input counts.
Where a block puts its input through a layer and adds nothing to it, the difference of output and
input means nothing, and what is replayed is the output as it was.

    h + gate * mlp(norm(h))                     a sum leads from h to the output: adds
    mlp(norm(x)) + x, x = linear(cat(h, skip))  every path goes through the linear layer: does not
"""

from collections.abc import Iterator

from torch import fx

from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.graph.understand.passed_on import passed_on


def adds_to(block: int, stream: StreamNodes, assignment: Assignment) -> bool:
    """True if the block hands on a stream as it came, plus something: if a path leads from one to
    the other on which elements are only moved, scaled by numbers and added up. True as well where
    it doesn't both come and go."""
    before, after = stream.at[block], stream.at[block + 1]
    if before is None or after is None:
        return True
    return any(node is before for node in summed_in(after, block, assignment))


def summed_in(node: fx.Node, block: int, assignment: Assignment) -> Iterator[fx.Node]:
    """A value that the block hands on, and those that such paths lead from to it."""
    seen, stack = {node}, [node]
    while stack:
        node = stack.pop()
        yield node
        if assignment.segment_of.get(node) == block + 1:
            passed = [n for n in passed_on(node) if n not in seen]
            seen.update(passed)
            stack += passed
