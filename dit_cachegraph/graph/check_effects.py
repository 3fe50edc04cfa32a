"""Refuse what a skipped block must not hide: writes to values that live outside it, and RNG.

A write is found by what it does, not by its name alone: the schema of the operator, `setitem`,
`out=`, the in-place operators, in-place methods. What it writes to is found by storage: fake views
share the storage of their base. A write to a buffer that its own segment made (the rotary embedding
of Wan fills an `empty_like`) is sound; one to a value from elsewhere is not:

    block:  h = torch.empty_like(q); h[..., 0::2] = x      # made here: kept
    block:  hidden += control                              # hidden came in: refused
"""

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.assign_nodes import ARGUMENT, Assignment, segment_name
from dit_cachegraph.graph.fx_utils import line_of, storages_of, target_name

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


def check_effects(assignment: Assignment) -> None:
    """Raise `CannotCut` at the first effect that a cut or a skipped block would change."""
    made_in = _where_storages_come_from(assignment)
    for i, node in enumerate(assignment.nodes):
        segment = assignment.segment_of.get(node, ARGUMENT)
        if segment == ARGUMENT:
            continue
        for written in written_by(node):
            _check_write(node, i, written, made_in, assignment)
        if 1 <= segment <= len(assignment.blocks) and _is_random(node):
            raise CannotCut(
                f"{segment_name(segment, assignment.blocks)} draws random numbers "
                f"(`{target_name(node)}`{line_of(node)}): a reused step would draw none; "
                "call `eval()` on the model, or draw them before the blocks"
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


def _is_random(node: fx.Node) -> bool:
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


@dataclass(frozen=True, slots=True)
class _Origins:
    """Of every storage, the first node that has it, as (its segment, its place in the graph)."""

    of_storage: dict[int, tuple[int, int]]

    def of(self, node: fx.Node) -> set[tuple[int, int]]:
        return {self.of_storage[storage] for storage in storages_of(node)}


def _where_storages_come_from(assignment: Assignment) -> _Origins:
    found: dict[int, tuple[int, int]] = {}
    for i, node in enumerate(assignment.nodes):
        segment = assignment.segment_of.get(node)
        if segment is not None:
            for storage in storages_of(node):
                found.setdefault(storage, (segment, i))
    return _Origins(found)


def _check_write(
    node: fx.Node, i: int, written: fx.Node, made: _Origins, assignment: Assignment
) -> None:
    segment = assignment.segment_of[node]
    first_block = assignment.blocks[0].first
    outside = {
        (where, place)
        for where, place in made.of(written)
        # What was made among the blocks was moved before them with all that writes to it.
        if where != segment or (segment == 0 and place < first_block < i)
    }
    # The prologue runs before anything is kept, and the epilogue after everything is.
    is_before = segment == 0 and i < first_block
    if not outside or is_before or segment == assignment.num_segments - 1:
        return
    origins = {where for where, _ in outside}
    origin = min(origins)
    where = (
        "an argument of the model"
        if origin == ARGUMENT
        else "a value of " + segment_name(origin, assignment.blocks)
    )
    raise CannotCut(
        f"{_where(segment, i, assignment)} writes in place (`{target_name(node)}`"
        f"{line_of(node)}) to `{written.name}`, {where}, which a reused step would leave "
        "unwritten; write `x = x + y` instead of `x += y` there"
    )


def _where(segment: int, i: int, assignment: Assignment) -> str:
    if segment == 0 and i > assignment.blocks[0].first:
        return "the code between the blocks"
    return segment_name(segment, assignment.blocks)
