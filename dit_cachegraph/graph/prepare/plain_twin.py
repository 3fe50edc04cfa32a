"""The call that makes, as a value of its own, what a call in place writes.

x.add_(y)    torch.add(x, y, out=x)    relu(x, inplace=True)    x += y
x.add(y)     torch.add(x, y)           relu(x, inplace=False)   x + y
"""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import target_name

_PLAIN_OPERATORS: Mapping[object, Callable[..., Any]] = MappingProxyType({
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
})  # fmt: skip


class Twin(NamedTuple):
    """What takes the place of a node's target and arguments."""

    target: Callable[..., Any] | str
    args: tuple[fx.node.Argument, ...]
    kwargs: dict[str, fx.node.Argument]


def plain_twin(node: fx.Node) -> Twin | None:
    """The call to make in place of `node`, which writes to one value; None if there is none."""
    kwargs = dict(node.kwargs)
    if "out" in kwargs:
        out = kwargs.pop("out")
        return Twin(node.target, node.args, kwargs) if isinstance(out, fx.Node) else None
    if kwargs.get("inplace") is True:
        return Twin(node.target, node.args, {**kwargs, "inplace": False})
    target = _plain_target(node)
    return None if target is None else Twin(target, node.args, kwargs)


def _plain_target(node: fx.Node) -> Callable[..., Any] | str | None:
    if node.op == "call_function" and node.target in _PLAIN_OPERATORS:
        return _PLAIN_OPERATORS[node.target]
    name = target_name(node)
    plain = name.removesuffix("_")
    # What torch has as one operator in two forms means the same in both; `x.map_` is none such.
    if not _is_operator(name) or not _is_operator(plain) or name.endswith("__"):
        return None
    if node.op == "call_method":
        return plain if hasattr(torch.Tensor, plain) else None
    is_of_torch = node.target is getattr(torch, name, None)
    return getattr(torch, plain, None) if is_of_torch else None


def _is_operator(name: str) -> bool:
    return hasattr(torch.ops.aten, name)
