"""What a node does besides making its value: writes in place, random numbers, contexts.

A write is found by what it does, not by its name alone: the schema of the operator, `setitem`,
`out=`, the in-place operators, in-place methods.
"""

import inspect
import operator
from collections.abc import Iterator
from types import MappingProxyType

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import target_name, value_of

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in (
        "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul",
        "iand", "ior", "ixor", "ilshift", "irshift", "setitem",
    )
)  # fmt: skip
# Random unless told not to be, with the argument that tells: (its name, its position, its default).
_RANDOM_IF = MappingProxyType({
    "dropout": ("training", 2, True),
    "dropout1d": ("training", 2, True),
    "dropout2d": ("training", 2, True),
    "dropout3d": ("training", 2, True),
    "alpha_dropout": ("training", 2, False),
    "feature_alpha_dropout": ("training", 2, False),
    "feature_dropout": ("train", 2, True),
    "native_dropout": ("train", 2, True),
    "rrelu": ("training", 3, False),
    "scaled_dot_product_attention": ("dropout_p", 4, 0.0),
    "multi_head_attention_forward": ("training", 14, True),
})  # fmt: skip
_RANDOM = frozenset(("gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d"))


def has_effect(node: fx.Node) -> bool:
    """True for a node that does more than make a value, so that leaving it out, or running it where
    nobody reads it, changes what other nodes make: a write, a draw, or a node that makes none (it
    enters or leaves a context, or asserts)."""
    makes_no_value = value_of(node) is None and node.op != "get_attr"
    return makes_no_value or bool(written_by(node)) or is_random(node)


def is_context(node: fx.Node) -> bool:
    """True for a node that enters or leaves a context: it makes no value and is given none, so that
    what it does can only be to the nodes after it. Autocast, `vmap` and `sdpa_kernel` are such."""
    return (
        node.op == "call_function"
        and value_of(node) is None
        and all(value_of(argument) is None for argument in node.all_input_nodes)
    )


def written_by(node: fx.Node) -> list[fx.Node]:
    """The arguments that this node writes to in place."""
    written: list[object] = [node.kwargs.get("out")]
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        written.append(node.args[0])
    elif isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        written += [a for o in _overloads(node.target) for a in _written_by_schema(node, o)]
    elif _is_in_place_name(node) or _is_told_to_be_in_place(node):
        written.append(node.args[0] if node.args else next(iter(node.kwargs.values())))
    return list(dict.fromkeys(_nodes_in(written)))


def _nodes_in(argument: object) -> Iterator[fx.Node]:
    if isinstance(argument, fx.Node):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from _nodes_in(item)


def _overloads(
    target: torch._ops.OpOverload | torch._ops.OpOverloadPacket,
) -> list[torch._ops.OpOverload]:
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    return [getattr(target, name) for name in target.overloads()]


def _is_told_to_be_in_place(node: fx.Node) -> bool:
    """True for `F.relu(x, inplace=True)`, also where it is told by position."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    if node.op != "call_function" or not any(a is True for a in node.args):
        return False
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return "inplace" in names[: len(node.args)] and node.args[names.index("inplace")] is True


def _written_by_schema(node: fx.Node, overload: torch._ops.OpOverload) -> list[object]:
    arguments = overload._schema.arguments
    return [
        node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        for i, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _is_in_place_name(node: fx.Node) -> bool:
    """True for `add_`, `torch.relu_`, `masked_fill_`, ...: torch's mark of an in-place function.
    Python's own operators (`and_`, `or_`, `not_`) are named so for another reason."""
    if node.op not in ("call_method", "call_function") or not node.args:
        return False
    if getattr(node.target, "__module__", None) == operator.and_.__module__:
        return False
    name = target_name(node)
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def is_random(node: fx.Node) -> bool:
    """True for what draws random numbers: by torch's own tag on the operator of that name."""
    name = target_name(node).removesuffix(".default")
    if name in _RANDOM_IF:
        argument, position, default = _RANDOM_IF[name]
        told = node.args[position] if len(node.args) > position else node.kwargs.get(argument)
        told = default if told is None else told
        return bool(told) and _probability(node) != 0
    if name in _RANDOM:
        return True
    target = node.target
    if not isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        if not hasattr(torch.ops.aten, name):
            return False
        target = getattr(torch.ops.aten, name)
    tags = {tag for overload in _overloads(target) for tag in overload.tags}
    return torch.Tag.nondeterministic_seeded in tags


def _probability(node: fx.Node) -> object:
    return node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
