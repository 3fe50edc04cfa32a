"""Put what a region of its own runs into the graph itself.

Two kinds: what `torch.utils.checkpoint` is given, and what `torch.compiler.nested_compile_region`
marks. Without gradients nothing is kept for a backward pass and nothing computed again, so both do
what their body does; and a block that they hide is seen by no other stage.

    body(x, w): y = linear(x, w); return (y + x,)
    out = tag_activation_checkpoint(body, h, w0); h1 = out[0]     ->   y = linear(h, w0); h1 = y + h

    out1 = invoke_subgraph(body, "name", h, w1); h1 = out1[0]     ->   y1 = linear(h, w1)
    out2 = invoke_subgraph(body, "name", h1, w2); h2 = out2[0]         h1 = y1 + h
                                                                       y2 = linear(h1, w2)
                                                                       h2 = y2 + h1

Dynamo traces a marked region once and calls its body again and again: there the values and the
calls of modules that its nodes carry are those of the first call, and are worked out for each.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_map_only

from dit_cachegraph.graph.fake_run import made_of
from dit_cachegraph.graph.fx_utils import layout_key, storages_in, tensors_in, value_of

CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
NESTED_REGION = torch.ops.higher_order.invoke_subgraph
_ModuleCalls = Mapping[str, tuple[str, object]]


@dataclass(frozen=True, slots=True)
class _Region:
    """One call of a region: `path` leads from the graph to its body, and `traced_in` are the calls
    of modules around it when the body was traced."""

    call: fx.Node
    holder: fx.Node
    body: fx.GraphModule
    traced_in: _ModuleCalls

    @property
    def path(self) -> str:
        return str(self.holder.target)

    @property
    def is_marked(self) -> bool:
        """True for one whose body may be that of other calls too."""
        return self.call.target is NESTED_REGION

    @property
    def operands(self) -> tuple[Any, ...]:
        """What the body is given now: it changes as the regions before this one are inlined."""
        num_before = 2 if self.is_marked else 1  # The body, and a name for it.
        return self.call.args[num_before:]


def inline_regions(gm: fx.GraphModule) -> None:
    """Replace each call of a region by a copy of its body, with those inside it. What the graph
    computes stays the same."""
    are_values_shared = False
    while regions := _regions(gm):
        are_values_shared |= any(region.is_marked for region in regions)
        for region in regions:
            _inline(gm, region)
    if are_values_shared:
        for node in gm.graph.nodes:
            if node.op in ("call_function", "call_method"):
                node.meta["example_value"] = _value_here(node)
    gm.recompile()


def _regions(gm: fx.GraphModule) -> list[_Region]:
    """In the order of the graph, so that the first of those that share a body was traced."""
    calls = [node for node in gm.graph.nodes if node.target in (CHECKPOINT, NESTED_REGION)]
    traced_in: dict[str, _ModuleCalls] = {}
    regions = []
    for call in calls:
        holder = call.args[0]
        assert isinstance(holder, fx.Node)
        path = str(holder.target)
        body = operator.attrgetter(path)(gm)
        assert isinstance(body, fx.GraphModule)
        around = traced_in.setdefault(path, _module_calls(call))
        regions.append(_Region(call, holder, body, around))
    return regions


def _inline(gm: fx.GraphModule, region: _Region) -> None:
    call, graph = region.call, region.body.graph
    given = dict(zip(graph.find_nodes(op="placeholder"), region.operands, strict=True))
    results: Any = None
    with gm.graph.inserting_before(call):
        for inner in graph.nodes:
            if inner.op == "output":
                results = fx.map_arg(inner.args[0], lambda n: given[n])
            elif inner.op != "placeholder":
                given[inner] = _copied(gm, region, inner, given)
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)
    if not region.holder.users:
        gm.graph.erase_node(region.holder)


def _copied(
    gm: fx.GraphModule, region: _Region, inner: fx.Node, given: Mapping[fx.Node, fx.Node]
) -> fx.Node:
    copy = gm.graph.node_copy(inner, lambda n: given[n])
    if inner.op == "get_attr":
        copy.target = f"{region.path}.{inner.target}"
    if region.is_marked:
        copy.meta["nn_module_stack"] = _calls_around(region, inner)
    return copy


def _calls_around(region: _Region, inner: fx.Node) -> _ModuleCalls:
    """The modules that a node of the body is called in, as this call of the region reaches them."""
    here, there = _module_calls(region.call), region.traced_in
    root, traced_root = _innermost(here), _innermost(there)
    calls = dict(here)
    for key, (path, kind) in _module_calls(inner).items():
        if key not in there:
            is_below = bool(root and traced_root) and path.startswith(f"{traced_root}.")
            path_here = root + path.removeprefix(traced_root) if is_below else path
            calls[f"{key} in {region.call.name}"] = (path_here, kind)
    return calls


def _innermost(calls: _ModuleCalls) -> str:
    paths = [path for path, _ in calls.values()]
    return paths[-1] if paths else ""


def _module_calls(node: fx.Node) -> _ModuleCalls:
    return node.meta.get("nn_module_stack") or {}


def _value_here(node: fx.Node) -> object:
    """What the node makes of what it is given now, by which views of one value are known. Inside of
    `torch.vmap`, which is not entered here, and where the size has a symbol of its own, which only
    the data tells, it is Dynamo's."""
    known = value_of(node)
    read = [value_of(source) for source in node.all_input_nodes]
    tensors = list(tensors_in(read))
    if not all(isinstance(t, FakeTensor) for t in tensors) or free_unbacked_symbols(known):
        return known
    if not tensors or isinstance(node.target, HigherOrderOperator):
        return _in_a_place_of_its_own(known)
    value = made_of(node, value_of)
    if _layouts(value) == _layouts(known):
        return value
    # Autocast is not entered here either; what it casts is no view.
    is_view = not storages_in(value).isdisjoint(storages_in(read))
    return known if is_view else _in_a_place_of_its_own(known)


def _in_a_place_of_its_own(known: object) -> object:
    """For what each call of a region makes anew, and is no view of what was before."""

    def anew(tensor: FakeTensor) -> Tensor:
        with tensor.fake_mode, torch.no_grad():
            return torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )

    return tree_map_only(FakeTensor, anew, known)


def _layouts(value: object) -> list[tuple[object, ...]]:
    return [layout_key(tensor) for tensor in tensors_in(value)]
