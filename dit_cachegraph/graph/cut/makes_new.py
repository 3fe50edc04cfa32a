"""Whether a segment does nothing but make new tensors, so that AOTAutograd's wrapper around what
was compiled of it has nothing to do.

That wrapper applies writes to inputs and counts them, makes outputs that are views of an input anew
from that input, marks sizes that vary, and sets autocast and grad mode back. At twenty segments a
step it costs as much as a block.

    h + gate * mlp(norm(h))                             new: may be called without it
    h, h.view(-1), h.to(dtype)                          may be an input
    x.add_(1), a random number, `with autocast()`       an effect
"""

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import nodes_in, target_name, tensors_in, value_of
from dit_cachegraph.graph.node_effects import has_effect

# Each gives a tensor of its own whatever it is given. What may give back its input, as `reshape`,
# `contiguous`, `to` and `dropout` do, is none of these.
_MAKE_NEW = frozenset((
    "add", "sub", "mul", "truediv", "div", "pow", "neg", "matmul", "bmm", "baddbmm", "addmm",
    "linear", "conv1d", "conv2d", "conv3d", "layer_norm", "rms_norm", "group_norm", "embedding",
    "silu", "gelu", "relu", "tanh", "sigmoid", "softmax", "exp", "sin", "cos", "sqrt", "rsqrt",
    "cat", "stack", "clone", "zeros_like", "ones_like", "empty_like",
))  # fmt: skip


def makes_only_new_tensors(graph: fx.Graph, *, is_last: bool) -> bool:
    """True if no output can be an input, or a view of one, and no node has an effect. The sizes of
    what `is_last` hands to the caller must not vary either: they would be marked."""
    inner = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    if any(map(has_effect, inner)):
        return False
    new: set[fx.Node] = set()
    for node in inner:
        if target_name(node) in _MAKE_NEW or _is_made_of(node, new):
            new.add(node)
    (results,) = graph.output_node().args
    outputs = list(nodes_in(results))
    if is_last and any(isinstance(s, torch.SymInt) for n in outputs for s in _sizes_of(n)):
        return False
    return all(node in new or not _is_tensor(node) for node in outputs)


def _is_made_of(node: fx.Node, new: set[fx.Node]) -> bool:
    """True for what can be, or be a view of, nothing but new tensors."""
    return node.op != "get_attr" and all(
        argument in new for argument in node.all_input_nodes if _is_tensor(argument)
    )


def _is_tensor(node: fx.Node) -> bool:
    return any(True for _ in tensors_in(value_of(node)))


def _sizes_of(node: fx.Node) -> list[object]:
    return [size for tensor in tensors_in(value_of(node)) for size in tensor.shape]
