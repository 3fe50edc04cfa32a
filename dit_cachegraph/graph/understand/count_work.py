"""How much a node computes: the floating-point operations of products, convolutions and attention.

Counted from the sizes of the call that is being compiled, a multiplication and an addition as two,
as `torch.utils.flop_counter` counts them. That one has to run what it counts, and no node can be
run alone that was traced inside `vmap` or a context; and on the CPU it knows no attention.

    linear(x [2, 16, 64], w [256, 64])    2 * (2 * 16 * 256) * 64 = 1,048,576
    layer_norm, silu, x + y, ...          0
"""

import math

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import (
    is_weight,
    nodes_in,
    num_elements_hint,
    size_hints,
    target_name,
    value_of,
)
from dit_cachegraph.graph.node_effects import bodies_of

# Functions that sum over the last dimension of their first factor, which comes second in some.
_PRODUCTS = frozenset((
    "linear", "matmul", "mm", "bmm", "mv", "grouped_mm", "_grouped_mm", "scaled_mm", "_scaled_mm",
    "_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm",
))  # fmt: skip
_PRODUCTS_ADDED = frozenset(("addmm", "baddbmm", "_addmm_activation"))
_ATTENTION = frozenset(("scaled_dot_product_attention", "flex_attention"))
# Whole layers that are one function of torch's.
_LAYERS = frozenset(("multi_head_attention_forward", "_transformer_encoder_layer_fwd"))
_TORCH = frozenset(("aten", "prims", "torchvision"))


def work_of(node: fx.Node) -> int:
    """The floating-point operations of one node; 0 for what has no formula."""
    name, made = target_name(node).partition(".")[0], num_elements_hint(value_of(node))
    arguments = [*node.args, *node.kwargs.values()]
    operands = [sizes for n in nodes_in(arguments) if (sizes := _sizes(n))]
    if name in _PRODUCTS or _is_foreign_product(node):
        return 2 * made * operands[0][-1]
    if name in _PRODUCTS_ADDED:
        return 2 * made * operands[1][-1]
    if name in _ATTENTION:
        query, key, value = operands[:3]
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if name in _LAYERS:
        return _work_of_layer(node, operands[0])
    if name == "einsum":
        return _work_of_einsum(str(node.args[0]), operands, made)
    if name.startswith("conv") and len(operands) > 1:
        # Each element is that of one window of the weight.
        windows = math.prod(operands[0]) if "transpose" in name else made
        return 2 * windows * math.prod(operands[1][1:])
    return sum(work_of(inner) for body in bodies_of(node) for inner in body.graph.nodes)


def _sizes(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a tensor; empty for a number, and for what is no tensor."""
    value = value_of(node)
    return size_hints(value) if isinstance(value, torch.Tensor) else ()


def _is_foreign_product(node: fx.Node) -> bool:
    """True for an operator of another library's that reads a matrix of weights beside its first
    operand: quantised layers are such."""
    if not isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return False
    is_foreign = str(node.target).partition(".")[0] not in _TORCH
    return is_foreign and any(is_weight(n) and len(_sizes(n)) > 1 for n in node.all_input_nodes[1:])


def _work_of_layer(node: fx.Node, tokens: tuple[int, ...]) -> int:
    """Of each token with each matrix; that of tokens with each other is left out."""
    matrices = [_sizes(n) for n in node.all_input_nodes if is_weight(n) and len(_sizes(n)) > 1]
    return 2 * math.prod(tokens[:-1]) * sum(map(math.prod, matrices))


def _work_of_einsum(equation: str, operands: list[tuple[int, ...]], made: int) -> int:
    """Of each element that is made, over all indices that are summed."""
    terms, _, result = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=False):
        before, _, after = term.partition("...")
        sizes.update(zip(before, operand, strict=False))
        sizes.update(zip(reversed(after), reversed(operand), strict=False))
    summed = [size for index, size in sizes.items() if index not in result]
    return 2 * made * math.prod(summed) if len(operands) > 1 else 0
