"""What sizes have to do with each other, as text in a file: read without sympy, and never run.

(s0//2)*s1    Eq(Mod(s0, 2), 0)    s0 <= 4096
"""

import ast
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Sizes = Mapping[str, int]
SizeExpression = Callable[[Sizes], int]

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType({
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
})  # fmt: skip
_BY_NAME: Mapping[str, Callable[..., Any]] = MappingProxyType({
    "Eq": operator.eq, "Ne": operator.ne, "Mod": operator.mod, "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv, "Max": max, "Min": min,
})  # fmt: skip


def parse_sizes(text: str) -> SizeExpression:
    """The function of sizes, by name, that an expression is.

    Raises:
        ValueError: it is something else than arithmetic on sizes.
    """
    try:
        return _parsed(ast.parse(text, mode="eval").body)
    except (SyntaxError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"`{text}` is no arithmetic on sizes") from error


def _parsed(node: ast.AST) -> SizeExpression:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        number = node.value
        return lambda sizes: number
    if isinstance(node, ast.Name):
        name = node.id
        return lambda sizes: sizes[name]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _of(operator.neg, node.operand)
    if isinstance(node, ast.BinOp):
        return _of(_BINARY[type(node.op)], node.left, node.right)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _of(_BINARY[type(node.ops[0])], node.left, node.comparators[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _of(_BY_NAME[node.func.id], *node.args)
    raise TypeError(type(node).__name__)


def _of(function: Callable[..., Any], *nodes: ast.AST) -> SizeExpression:
    operands = [_parsed(node) for node in nodes]
    return lambda sizes: function(*[operand(sizes) for operand in operands])
