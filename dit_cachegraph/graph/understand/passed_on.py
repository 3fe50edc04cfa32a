"""Which values are handed on by a node that moves elements, scales them by numbers or adds them up.

h.float() + gate * y    the elements of `h`, and those of the product, that starts anew
h.clone().add_(y)       those of `h` and of `y`
linear(h, w)            none
"""

from collections.abc import Iterator

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_weight, target_name, value_of
from dit_cachegraph.graph.node_effects import written_by

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


def passed_on(node: fx.Node) -> Iterator[fx.Node]:
    """The values whose elements are among those of this node's, or of what is written to it."""
    for user in node.users:
        if node in written_by(user):
            yield from (n for n in user.all_input_nodes if n is not node)
    tensors = [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor | tuple)]
    is_scaled = target_name(node) in _SCALES and len(tensors) == 1
    if is_scaled or target_name(node) in _MOVES:
        yield from (n for n in tensors if not is_weight(n))
