"""Whether a block adds to a stream, or makes a new one.

Between two blocks that add, a stream's residual (what was added) is replayed: the new input counts.
Where a block puts its input through a layer and adds nothing to it, the difference of output and
input means nothing, and what is replayed is the output as it was.

    h + gate * mlp(norm(h))                     a sum leads from h to the output: adds
    mlp(norm(x)) + x, x = linear(cat(h, skip))  every path goes through the linear layer: does not
"""

from collections.abc import Iterator

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_weight, target_name, value_of
from dit_cachegraph.graph.node_effects import written_by
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes

# What moves elements, or leaves each nearly as it was.
_MOVES = frozenset((
    "reshape", "reshape_as", "view", "view_as", "permute", "transpose", "t", "flatten",
    "unflatten", "movedim",
    "contiguous", "clone", "detach", "squeeze", "unsqueeze", "expand", "expand_as", "repeat",
    "getitem", "slice", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "narrow",
    "select", "alias",
    "to", "type", "type_as", "float", "half", "bfloat16", "clamp", "clip", "nan_to_num", "dropout",
    "roll", "flip", "pad", "index_select", "gather", "masked_fill", "add", "iadd", "sub", "isub",
    "cat", "concat", "stack", "where", "lerp", "addcmul", "addcdiv", "addmm", "baddbmm", "copy_",
    "index_add", "index_copy", "index_put", "scatter", "scatter_add", "masked_scatter",
    "slice_scatter", "select_scatter",
))  # fmt: skip
_SCALES = frozenset(("mul", "imul", "truediv", "itruediv", "div"))


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
            passed = [n for n in _passed_on(node) if n not in seen]
            seen.update(passed)
            stack += passed


def _passed_on(node: fx.Node) -> Iterator[fx.Node]:
    """The values whose elements are among those of this node's, or of what is written to it."""
    for user in node.users:
        if node in written_by(user):
            yield from (n for n in user.all_input_nodes if n is not node)
    tensors = [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor | tuple)]
    is_scaled = target_name(node) in _SCALES and len(tensors) == 1
    if is_scaled or target_name(node) in _MOVES:
        yield from (n for n in tensors if not is_weight(n))
