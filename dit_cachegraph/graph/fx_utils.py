"""What the stages read off FX nodes: module paths, values, storages, sources, symbols.

Dynamo's own metadata is read here and nowhere else: `nn_module_stack` and `example_value` (2.0 on),
`grapharg` and `_dynamo_source` of placeholders (2.1 on).
"""

import math
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sympy
import torch
from torch import fx
from torch._dynamo.source import TensorPropertySource
from torch.multiprocessing.reductions import StorageWeakRef

from dit_cachegraph.plan import Block

_Item = TypeVar("_Item")
_MODULES_DICT = re.compile(r"(?:\.__dict__\['_modules'\]|\._modules)\['([^']+)'\]")
_ITEM = re.compile(r"\[(\d+)\]")
WEIGHT_MARK = "_dynamo_static_input_type"
_ARITHMETIC = frozenset((
    "add", "sub", "rsub", "mul", "truediv", "div", "floordiv", "mod", "remainder", "pow", "lerp",
    "clamp", "clip", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow",
))  # fmt: skip
_ROOT = re.compile(r"^[LG]\['[^']*'\](?:\.__self__)?\.?")


def normalize_path(path: str) -> str:
    """`L['self'].__dict__['_modules']['blocks'].3.attn` -> `blocks.3.attn`.

    Dynamo spells a module's path as it was reached: diffusers' `__getattr__` makes it go through
    `__dict__`, and the root may be any local or global name, or that of a bound method. An item of
    a Python list or tuple has brackets.
    """
    return _ITEM.sub(r".\1", _ROOT.sub("", _MODULES_DICT.sub(r".\1", path))).lstrip(".")


def module_stack(node: fx.Node) -> list[tuple[str, str, object]]:
    """(call key, normalised path, class) of every module call around the node, outermost first.

    The call key tells two calls of one module apart (Dynamo appends `@1`, `@2`, ... to its id).
    """
    stack = node.meta.get("nn_module_stack") or {}
    return [(str(key), normalize_path(path), cls) for key, (path, cls) in stack.items()]


def value_of(node: fx.Node) -> object:
    """The fake value of a node: a FakeTensor, a SymInt, a tuple of them, or a constant."""
    return node.meta.get("example_value")


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """All tensors of a (possibly nested) value."""
    return _items_in(value, torch.Tensor)


def nodes_in(argument: object) -> Iterator[fx.Node]:
    """All nodes of a (possibly nested) argument."""
    return _items_in(argument, fx.Node)


def _items_in(value: object, kind: type[_Item]) -> Iterator[_Item]:
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _items_in(item, kind)


def storages_of(node: fx.Node) -> set[int]:
    """The storages behind a node's value. Fake views share the storage of their base, so equal
    numbers mean aliases. Only meaningful while the fake values are alive."""
    return storages_in(value_of(node))


def storages_in(value: object) -> set[int]:
    """The same of a value that no node carries."""
    tensors = map(_behind_vmap, tensors_in(value))
    return {storage_of(t) for t in tensors if t.layout == torch.strided}


def storage_of(tensor: torch.Tensor) -> int:
    """The storage behind a strided tensor, as a number."""
    return StorageWeakRef(tensor.untyped_storage()).cdata


def _behind_vmap(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that has the storage: a value inside `torch.vmap` is a view of it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def source_name(placeholder: fx.Node) -> str:
    """Where an argument comes from, as Dynamo writes it: `L['kwargs']['timestep']`."""
    source = source_of(placeholder)
    if source is None:
        return placeholder.name
    # `name` was a method up to torch 2.11 and is a property since.
    return source.name() if callable(source.name) else source.name


def source_of(placeholder: fx.Node) -> Any:  # noqa: ANN401  # Dynamo's `Source`
    """Where an argument comes from; None for one that Dynamo didn't make."""
    graph_arg = placeholder.meta.get("grapharg")
    return None if graph_arg is None else graph_arg.source


def is_number_of_module(placeholder: fx.Node) -> bool:
    """True for a Python number that some module holds: after it has changed once, Dynamo hands it
    over as a tensor without sizes, at each call a new one."""
    value = value_of(placeholder)
    if is_parameter(placeholder) or not isinstance(value, torch.Tensor):
        return False
    return value.dim() == 0 and is_of_module(placeholder)


def is_of_module(placeholder: fx.Node) -> bool:
    """True for an argument that Dynamo found in some module."""
    source = source_of(placeholder)
    if source is None:
        return False
    # `guard_source` was a method up to torch 2.11 and is a property since.
    guarded = source.guard_source() if callable(source.guard_source) else source.guard_source
    return guarded.name.endswith("_MODULE")


def is_parameter(placeholder: fx.Node) -> bool:
    """True for parameters, buffers and plain tensor attributes of modules."""
    return WEIGHT_MARK in (placeholder.meta.get("tensor_dict") or {})


def is_weight(node: fx.Node) -> bool:
    """True for the arguments that are parameters or buffers."""
    return node.op == "placeholder" and is_parameter(node)


def target_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", str(node.target))


def is_concatenation(node: fx.Node) -> bool:
    """True for what puts tensors into one."""
    return target_name(node) in ("cat", "concat", "concatenate")


def is_arithmetic(node: fx.Node) -> bool:
    """True for what computes with the values of tensors: a number among its operands is no size."""
    is_tensor = isinstance(value_of(node), torch.Tensor)
    return is_tensor and target_name(node).removesuffix("_") in _ARITHMETIC


def line_of(node: fx.Node) -> str:
    """` at file:line`, from Dynamo's stack trace."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line for line in trace.splitlines() if "File " in line]
    if not frames:
        return ""
    parts = frames[-1].split(",")
    file = parts[0].strip().removeprefix("File ").strip('"').rpartition("/")[2]
    return f" at {file}:{parts[1].strip().removeprefix('line ')}"


def call_of(block: Block, nodes: Sequence[fx.Node]) -> str:
    """` at file:line` of the first statement of a block that made a node; empty where none is
    known."""
    inside = nodes[block.first : block.last + 1]
    return next((line for node in inside if (line := line_of(node))), "")


def target_key(node: fx.Node) -> object:
    """Equal for nodes that call or name the same thing. Dynamo wraps a function of NumPy's anew at
    every call, and names anew the graph of one that is handed on (flex attention's mask)."""
    if type(node.target).__module__ == "torch._dynamo.utils":
        return repr(node.target)
    owner = node.graph.owning_module
    if node.op == "get_attr" and owner is not None:
        graph = operator.attrgetter(str(node.target))(owner)
        if isinstance(graph, fx.GraphModule) and not graph.graph.find_nodes(op="get_attr"):
            return graph.code
    return node.target


def without_message(node: fx.Node) -> tuple[fx.node.Argument, ...]:
    """The arguments of a node, but not what an assertion would say: Dynamo writes sizes that depend
    on data into it by names of their own."""
    is_assertion = target_name(node).startswith(("_assert_scalar", "_assert_async"))
    return node.args[:1] if is_assertion else node.args


def free_symbols(values: Iterable[object]) -> set[sympy.Symbol]:
    """The shape symbols that occur in sizes and strides of tensors and in SymInts."""
    found: set[sympy.Symbol] = set()
    for value in values:
        if isinstance(value, torch.SymInt):
            found |= value.node.expr.free_symbols
        for tensor in tensors_in(value):
            for size in (*tensor.shape, *tensor.stride()):
                if isinstance(size, torch.SymInt):
                    found |= size.node.expr.free_symbols
    return found


def input_key(value: object) -> tuple[object, ...]:
    """Equal for values that one compiled function accepts alike."""
    requires_grad = isinstance(value, torch.Tensor) and value.requires_grad
    return (*layout_key(value), requires_grad)


def layout_key(value: object) -> tuple[object, ...]:
    """Equal for values that lie alike in memory: type, device, sizes, strides. A dimension of size
    one is never stepped over, so that its stride may be any number: it is left out."""
    if isinstance(value, torch.Tensor):
        shape = tuple(_size_key(size) for size in value.shape)
        steps = zip(shape, value.stride(), strict=True)
        stride = tuple(None if size == 1 else _size_key(step) for size, step in steps)
        return ("tensor", value.dtype, str(value.device), shape, stride)
    if isinstance(value, torch.SymInt):
        return ("int", str(value.node.expr))
    return (type(value).__name__, repr(value))


def shape_key(node: fx.Node) -> object:
    """Type and sizes of a value: what a stream keeps from block to block (strides it need not)."""
    key = layout_key(value_of(node))
    return (key[1], key[3]) if key[0] == "tensor" else key


def _size_key(size: int | torch.SymInt) -> object:
    """The expression of a dynamic size. One that a guard has pinned to a number is that number."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    return int(expression) if expression.is_Integer else str(expression)


def num_elements_hint(value: object) -> int:
    """How many elements a value holds, at the sizes of the call that is being compiled."""
    return sum(math.prod(size_hints(tensor)) for tensor in tensors_in(value))


def size_hints(tensor: torch.Tensor) -> tuple[int, ...]:
    """The sizes of a tensor in the call that is being compiled; 1 for one that depends on data."""
    return tuple(
        _size_hint(size) if isinstance(size, torch.SymInt) else int(size) for size in tensor.shape
    )


def _size_hint(size: torch.SymInt) -> int:
    hint = size.node.hint
    return hint if isinstance(hint, int) else 1  # A ragged size has a node for a hint.


def weight_arguments(gm: fx.GraphModule) -> tuple[int, ...]:
    """Which of the call's arguments are parameters or buffers."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    return tuple(i for i, node in enumerate(placeholders) if is_parameter(node))


def is_size_argument(node: fx.Node) -> bool:
    """True for the arguments in which Dynamo hands over dynamic sizes."""
    return node.op == "placeholder" and isinstance(value_of(node), torch.SymInt)


def is_integer_given(node: fx.Node) -> bool:
    """True for an integer that the caller gives, or a module holds, and not the size of a tensor.
    After it has changed once, Dynamo hands it over as it does a size."""
    source = source_of(node) if is_size_argument(node) else None
    return source is not None and not isinstance(source, TensorPropertySource)


def is_size_arithmetic(node: fx.Node) -> bool:
    """True for integers computed from size arguments alone: no part of any block, and cheaper to
    compute again where they are read than to hand on."""
    return (
        node.op == "call_function"
        and isinstance(value_of(node), torch.SymInt)
        and all(is_size_arithmetic(a) or is_size_argument(a) for a in node.all_input_nodes)
    )


def size_expression(node: fx.Node) -> str | None:
    """The expression behind a size argument or size arithmetic; None for every other node."""
    value = value_of(node)
    if isinstance(value, torch.SymInt) and (is_size_argument(node) or is_size_arithmetic(node)):
        return str(value.node.expr)
    return None


def pinned_size(node: fx.Node) -> int | None:
    """The number that a size argument or size arithmetic was pinned to by a guard, if it was."""
    value = value_of(node)
    if isinstance(value, torch.SymInt) and value.node.expr.is_Integer:
        return int(value.node.expr)
    return None
