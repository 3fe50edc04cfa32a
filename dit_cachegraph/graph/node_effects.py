"""What a node does besides making its value: writes in place, random numbers, contexts.

A write is found by what it does, not by its name alone: the schema of the operator, `setitem`,
`out=`, the in-place operators, in-place methods, and a few functions whose schema keeps it to
itself (the running statistics of `batch_norm`). What a higher-order operator is given to run counts
as its own doing:

    wrap(body, h, log)  with  body: log.mul_(0.5); ...      writes to log
"""

import inspect
import operator
from collections.abc import Iterator
from types import MappingProxyType

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import nodes_in, storages_of, target_name, value_of

_IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in (
        "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul",
        "iand", "ior", "ixor", "ilshift", "irshift", "setitem",
    )
)  # fmt: skip
# Written to though no schema says it: the argument that tells, and those that are written to.
_STATISTICS = ("running_mean", "running_var")
_WRITES_IF = MappingProxyType({
    "batch_norm": ("training", _STATISTICS),
    "native_batch_norm": ("training", _STATISTICS),
    "cudnn_batch_norm": ("training", _STATISTICS),
    "miopen_batch_norm": ("training", _STATISTICS),
    "instance_norm": ("use_input_stats", _STATISTICS),
    "embedding": ("max_norm", ("weight",)),
    "embedding_bag": ("max_norm", ("weight",)),
})  # fmt: skip
# Functions of torch that draw random numbers and are no operators, which have a tag for it.
_RANDOM = frozenset((
    "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "rrelu",
    "gumbel_softmax", "fractional_max_pool2d", "fractional_max_pool3d",
    "scaled_dot_product_attention", "multi_head_attention_forward",
))  # fmt: skip
# What draws does not where one of these is zero; `p` so only in what drops: `geometric_` draws.
_SWITCHES = ("train", "training", "dropout", "dropout_p", "p")


def has_effect(node: fx.Node) -> bool:
    """True for a node that does more than make a value, so that leaving it out, or running it where
    nobody reads it, changes what other nodes make: a write, a draw, or a node that makes none (it
    enters or leaves a context, or asserts)."""
    makes_no_value = value_of(node) is None and node.op != "get_attr"
    return makes_no_value or bool(written_by(node)) or random_node(node) is not None


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
    return list(dict.fromkeys(written for _, written in writes_of(node)))


def writes_of(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each write as (the node that writes, the argument of `node` that it writes to): the node
    itself, or one in a body that it runs (`wrap`, `cond`)."""
    for written in nodes_in(_written(node)):
        yield node, written
    operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
    for writer, storages in (write for body in bodies_of(node) for write in _writes_outside(body)):
        same = [n for n in operands if storages_of(n) & storages]
        # A body may be given parts of an operand, as values of its own.
        yield from ((writer, operand) for operand in same or operands)


def random_node(node: fx.Node) -> fx.Node | None:
    """What draws random numbers where this node is run: the node itself, or one in a body of it."""
    if _is_random(node):
        return node
    inside = (random_node(inner) for body in bodies_of(node) for inner in body.graph.nodes)
    return next((found for found in inside if found is not None), None)


def changes_layout(node: fx.Node) -> bool:
    """True for what changes the sizes or strides of a value, or its storage, and no element."""
    return any(torch.Tag.inplace_view in overload.tags for overload in _operator_of(node))


def bodies_of(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The graphs that a higher-order operator is given to run."""
    owner = node.graph.owning_module
    for argument in node.all_input_nodes:
        if argument.op == "get_attr" and owner is not None:
            body = operator.attrgetter(str(argument.target))(owner)
            if isinstance(body, fx.GraphModule):
                yield body


def _writes_outside(body: fx.GraphModule) -> Iterator[tuple[fx.Node, set[int]]]:
    """The writes in a body to what it didn't make: the node that writes, and the storages."""
    given = {
        storage
        for node in body.graph.nodes
        if node.op in ("placeholder", "get_attr")
        for storage in storages_of(node)
    }
    for node in body.graph.nodes:
        for writer, written in writes_of(node):
            if storages := storages_of(written) & given:
                yield writer, storages


def _written(node: fx.Node) -> list[object]:
    written: list[object] = [node.kwargs.get("out"), *_written_unsaid(node)]
    if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
        written.append(node.args[0])
    elif isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        written += [a for o in _overloads(node.target) for a in _written_by_schema(node, o)]
    elif _is_in_place_name(node) or _is_told_to_be_in_place(node):
        written.append(_first_argument(node))
    return written


def _overloads(
    target: torch._ops.OpOverload | torch._ops.OpOverloadPacket,
) -> list[torch._ops.OpOverload]:
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    return [getattr(target, name) for name in target.overloads()]


def _operator_of(node: fx.Node) -> list[torch._ops.OpOverload]:
    """The operator that a node calls, or torch's own one of that name."""
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _overloads(node.target)
    packet = getattr(torch.ops.aten, target_name(node), None)
    return [] if packet is None else _overloads(packet)


def _written_unsaid(node: fx.Node) -> list[object]:
    flag, written = _WRITES_IF.get(_plain_name(node), ("", ()))
    return [
        told.get(name)
        for told in (readings_of(node) if written else ())
        for name in written
        if told.get(flag) not in (None, False)
    ]


def readings_of(node: fx.Node) -> list[dict[str, object]]:
    """The arguments of a call by their names, with the defaults of those that it leaves out: one
    reading for each form of the operator that can be called so."""
    if inspect.isfunction(node.target):
        parameters = inspect.signature(node.target).parameters.values()
        forms = [{p.name: p.default for p in parameters}]
    else:
        schemas = [overload._schema for overload in _operator_of(node)]
        forms = [{_name_of(a, node): a.default_value for a in s.arguments} for s in schemas]
    return [
        {**form, **dict(zip(form, node.args, strict=False)), **node.kwargs}
        for form in forms
        if len(node.args) <= len(form) and form.keys() >= node.kwargs.keys()
    ]


def _name_of(argument: torch.Argument, node: fx.Node) -> str:
    """Of an argument of an operator. Torch's functions call `input` what schemas call `self`."""
    return "input" if argument.name == "self" and "input" in node.kwargs else argument.name


def _first_argument(node: fx.Node) -> object:
    """What torch's functions work on, whether it is told by position or by name."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))


def _is_told_to_be_in_place(node: fx.Node) -> bool:
    """True for `F.relu(x, inplace=True)`, also where it is told by position."""
    if not inspect.isfunction(node.target):
        return False
    return any(_is_nonzero(told.get("inplace", False)) for told in readings_of(node))


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
    if node.op not in ("call_method", "call_function"):
        return False
    if getattr(node.target, "__module__", None) == operator.and_.__module__:
        return False
    name = target_name(node)
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def _is_random(node: fx.Node) -> bool:
    """True for what draws random numbers: by torch's own tag on the operator of that name, unless
    an argument says that it draws none this time."""
    name = _plain_name(node).removesuffix("_")
    tags = {tag for overload in _operator_of(node) for tag in overload.tags}
    if name not in _RANDOM and torch.Tag.nondeterministic_seeded not in tags:
        return False
    switches = [switch for switch in _SWITCHES if switch != "p" or "dropout" in name]
    readings = readings_of(node)
    return not readings or any(
        all(_is_nonzero(told.get(switch)) for switch in switches) for told in readings
    )


def _plain_name(node: fx.Node) -> str:
    return target_name(node).removesuffix(".default")


def _is_nonzero(number: object) -> bool:
    """Whether a number, or the number that a node is, differs from zero: Dynamo hands over even the
    default of a keyword as a node under `dynamic=True`. What is not known counts as different."""
    value = value_of(number) if isinstance(number, fx.Node) else number
    if isinstance(value, torch.SymInt | torch.SymFloat):
        # To be asked is to be guarded: a number that changes from or to zero is compiled anew.
        return value.node.hint is None or bool(value != 0)
    return value != 0 if isinstance(value, int | float) else True
