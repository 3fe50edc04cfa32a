"""Refuse what a skipped block must not hide: writes to values that live outside it, and RNG.

A write is found by what it does, not by its name alone: the schema of the operator, `setitem`,
`out=`, the in-place operators, in-place methods. What it writes to is found by storage: fake views
share the storage of their base. A write to a buffer that its own segment made (the rotary embedding
of Wan fills an `empty_like`) is sound; one to a value from elsewhere is not:

    block:  h = torch.empty_like(q); h[..., 0::2] = x      # made here: kept
    block:  hidden += control                              # hidden came in: refused
"""

import operator
from collections.abc import Sequence

import torch
from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.assign_nodes import ARGUMENT, Assignment, segment_name
from dit_cachegraph.graph.fx_utils import storages_of

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in (
        "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul",
        "iand", "ior", "ixor", "ilshift", "irshift", "setitem",
    )
)  # fmt: skip
_RANDOM = frozenset(
    ("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli",
     "multinomial", "normal", "bernoulli_", "normal_", "uniform_", "exponential_")
)  # fmt: skip


def check_effects(assignment: Assignment) -> None:
    """Raise `CannotCut` at the first effect that a cut or a skipped block would change."""
    made_in = _where_storages_come_from(assignment)
    for node in assignment.nodes:
        segment = assignment.segment_of.get(node, ARGUMENT)
        if segment == ARGUMENT:
            continue
        for written in written_by(node):
            _check_write(node, written, segment, made_in, assignment)
        if 1 <= segment <= len(assignment.blocks) and _is_random(node):
            raise CannotCut(
                f"{segment_name(segment, assignment.blocks)} draws random numbers "
                f"(`{_name(node)}`{_line(node)}): a reused step would draw none; "
                "call `eval()` on the model, or draw them before the blocks"
            )


def written_by(node: fx.Node) -> list[fx.Node]:
    """The arguments that this node writes to in place."""
    out = node.kwargs.get("out")
    written = [n for n in (out if isinstance(out, list | tuple) else [out]) if n is not None]
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        written.append(node.args[0])
    elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        written += _written_by_schema(node, node.target)
    elif _is_in_place_name(node) or node.kwargs.get("inplace") is True:
        written.append(node.args[0])
    return [n for n in written if isinstance(n, fx.Node)]


def _written_by_schema(node: fx.Node, overload: torch._ops.OpOverload) -> list[object]:
    arguments = overload._schema.arguments
    return [
        node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        for i, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _is_in_place_name(node: fx.Node) -> bool:
    """True for `add_`, `torch.relu_`, `masked_fill_`, ...: torch's mark of an in-place function."""
    if node.op not in ("call_method", "call_function") or not node.args:
        return False
    name = _name(node)
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def _name(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target))


def _is_random(node: fx.Node) -> bool:
    name = _name(node)
    if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"):
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        probability = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        return training is not False and probability not in (0, 0.0)
    if isinstance(node.target, torch._ops.OpOverload):
        return any(tag == torch.Tag.nondeterministic_seeded for tag in node.target.tags)
    return name in _RANDOM


def _where_storages_come_from(assignment: Assignment) -> dict[int, int]:
    """storage -> the first segment (or `ARGUMENT`) whose node has it."""
    made_in: dict[int, int] = {}
    for node in assignment.nodes:
        segment = assignment.segment_of.get(node)
        if segment is not None:
            for storage in storages_of(node):
                made_in[storage] = min(segment, made_in.get(storage, segment))
    return made_in


def _check_write(
    node: fx.Node,
    written: fx.Node,
    segment: int,
    made_in: dict[int, int],
    assignment: Assignment,
) -> None:
    origins = {made_in[storage] for storage in storages_of(written)}
    if not origins or origins == {segment}:
        return
    if segment == 0 and origins <= {0, ARGUMENT}:
        return  # The prologue always runs, before anything is kept.
    origin = min(origins)
    where = (
        "an argument of the model"
        if origin == ARGUMENT
        else "a value of " + segment_name(origin, assignment.blocks)
    )
    raise CannotCut(
        f"{segment_name(segment, assignment.blocks)} writes in place (`{_name(node)}`"
        f"{_line(node)}) to `{written.name}`, {where}, which a reused step would leave "
        "unwritten; write `x = x + y` instead of `x += y` there"
    )


def _line(node: fx.Node) -> str:
    """` at file:line`, from Dynamo's stack trace."""
    frames: Sequence[str] = [
        line for line in (node.meta.get("stack_trace") or "").splitlines() if "File " in line
    ]
    if not frames:
        return ""
    parts = frames[-1].split(",")
    file = parts[0].strip().removeprefix("File ").strip('"').rpartition("/")[2]
    return f" at {file}:{parts[1].strip().removeprefix('line ')}"
