"""A graph of `torch.export` as the stages read Dynamo's: the same metadata, weights marked as such,
sizes as arguments.

    p_w, buf, x: f[s0, 8], none       weights as export lifts them, then what the user gives
    n = sym_size(x, 0); m = n * 2; y = view(x, m, 4)
->  s0, p_w, buf, x
    m = s0 * 2; y = view(x, m, 4)
"""

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from dit_cachegraph.exc import CannotSave
from dit_cachegraph.graph.fx_utils import (
    WEIGHT_MARK,
    free_symbols,
    is_weight,
    layout_key,
    storage_of,
    value_of,
)
from dit_cachegraph.graph.node_effects import has_effect


def as_traced(program: ExportedProgram) -> fx.GraphModule:
    """The graph of an exported program, which is used up, as Dynamo would have traced it. What the
    user gives that is no tensor is no argument of it, but a part; nor is what nothing reads.

    Raises:
        CannotSave: a size isn't one of a tensor of the call by itself, but a multiple of one.
    """
    gm = program.graph_module
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    for node in gm.graph.nodes:
        if "val" in node.meta:
            node.meta["example_value"] = node.meta["val"]
        if node.op == "placeholder" and kinds[node.name] is not InputKind.USER_INPUT:
            node.meta["tensor_dict"] = {WEIGHT_MARK: "unguarded"}
        if node.op == "placeholder" and kinds[node.name] is InputKind.PARAMETER:
            node.meta["example_value"] = nn.Parameter(node.meta["val"], requires_grad=False)
    _leave_out_constants(gm)
    _leave_out_idle_nodes(gm)
    _leave_out_unread(gm)
    _make_sizes_arguments(gm)
    gm.graph.lint()
    gm.recompile()
    return gm


def _leave_out_constants(gm: fx.GraphModule) -> None:
    for node in gm.graph.find_nodes(op="placeholder"):
        if not isinstance(value_of(node), torch.Tensor | torch.SymInt):
            node.replace_all_uses_with(value_of(node))
            gm.graph.erase_node(node)


def _leave_out_unread(gm: fx.GraphModule) -> None:
    gm.graph.eliminate_dead_code()
    for node in gm.graph.find_nodes(op="placeholder"):
        if not node.users:
            gm.graph.erase_node(node)


def _leave_out_idle_nodes(gm: fx.GraphModule) -> None:
    """What returns its input as it is, such as `float()` of what has that dtype: where a module is
    given the same tensor as another, it reads it by what the other made of it, as if it were handed
    on from one to the next."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.args and not has_effect(node):
            given = node.args[0]
            if isinstance(given, fx.Node) and _are_one(value_of(given), value_of(node)):
                node.replace_all_uses_with(given)
                gm.graph.erase_node(node)


def _are_one(given: object, made: object) -> bool:
    """Whether two tensors are the same elements of the same memory."""
    if not isinstance(given, torch.Tensor) or not isinstance(made, torch.Tensor):
        return False
    are_alike = layout_key(given) == layout_key(made) and _reading(given) == _reading(made)
    return are_alike and storage_of(given) == storage_of(made)


def _reading(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.storage_offset(), tensor.is_conj(), tensor.is_neg()


def _make_sizes_arguments(gm: fx.GraphModule) -> None:
    sizes = _sizes_of_call(gm)
    first = next(iter(gm.graph.nodes))
    arguments: dict[sympy.Symbol, fx.Proxy] = {}
    with gm.graph.inserting_before(first):
        for symbol, size in sizes.items():
            argument = gm.graph.placeholder(str(symbol))
            argument.meta["example_value"] = size
            arguments[symbol] = fx.Proxy(argument)
    for node in list(gm.graph.nodes):
        value = value_of(node)
        if node.op == "call_function" and isinstance(value, torch.SymInt):
            _put_arithmetic(gm, node, value, arguments)
    gm.graph.eliminate_dead_code()


def _sizes_of_call(gm: fx.GraphModule) -> dict[sympy.Symbol, torch.SymInt]:
    """The sizes that differ from call to call, each with a value that stands for it."""
    given = [n for n in gm.graph.find_nodes(op="placeholder") if not is_weight(n)]
    tensors = [value for n in given if isinstance(value := value_of(n), torch.Tensor)]
    shapes: list[Any] = [tensor.shape for tensor in tensors]
    sizes = [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)]
    alone: dict[Any, torch.SymInt] = {s.node.expr: s for s in sizes if _is_symbol(s)}
    missing = sorted(free_symbols(map(value_of, gm.graph.nodes)) - alone.keys(), key=str)
    if missing:
        raise CannotSave(
            f"the size {missing[0]} is none of a tensor that the model is given, or depends on "
            "what is in one: mark the sizes themselves in `dynamic_shapes`, and no multiple of them"
        )
    return dict(sorted(alone.items(), key=lambda item: str(item[0])))


def _is_symbol(size: torch.SymInt) -> bool:
    return isinstance(size.node.expr, sympy.Symbol)


def _value_or_number(argument: Any) -> Any:  # noqa: ANN401  # as FX has it
    return value_of(argument) if isinstance(argument, fx.Node) else argument


def _put_arithmetic(
    gm: fx.GraphModule,
    node: fx.Node,
    value: torch.SymInt,
    arguments: Mapping[sympy.Symbol, fx.Proxy],
) -> None:
    """Compute an integer from the sizes that are arguments, in place of reading it elsewhere."""
    before = set(gm.graph.nodes)
    with gm.graph.inserting_before(node):
        made = sympy_interp(PythonReferenceAnalysis, dict(arguments), value.node.expr)
    for added in gm.graph.nodes:
        if added not in before:
            args, kwargs = fx.node.map_aggregate((added.args, added.kwargs), _value_or_number)
            added.meta["example_value"] = added.target(*args, **kwargs)
    put: Any = made.node if isinstance(made, fx.Proxy) else int(made)
    node.replace_all_uses_with(put)
    gm.graph.erase_node(node)
