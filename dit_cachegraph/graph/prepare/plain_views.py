"""Read a value in another shape however it lies in memory.

`view` is refused by PyTorch where a value lies otherwise than it did when Dynamo traced the call,
and what blocks hand on is made contiguous at their borders. `reshape` gives the same values, as a
view where it can:

    y = blk0(x);  z = y.mT.view(n, -1)    ->    y = blk0(x);  z = y.mT.reshape(n, -1)

What is written to stays: a copy in the place of a view would take the write.
"""

from types import MappingProxyType

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import storages_of
from dit_cachegraph.graph.node_effects import written_by

_RESHAPES = MappingProxyType({
    "view": "reshape",
    "view_as": "reshape_as",
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
})  # fmt: skip


def plain_views(gm: fx.GraphModule) -> None:
    """Make each `view` a `reshape`, also in what higher-order operators run. What the graph
    computes stays the same."""
    modules = [module for module in gm.modules() if isinstance(module, fx.GraphModule)]
    views = {module: [n for n in module.graph.nodes if _is_shaped(n)] for module in modules}
    if not any(views.values()):
        return
    nodes = (node for module in modules for node in module.graph.nodes)
    written = {storage for n in nodes for w in written_by(n) for storage in storages_of(w)}
    for module, found in views.items():
        read = [node for node in found if written.isdisjoint(storages_of(node))]
        for node in read:
            node.target = _RESHAPES[node.target]
        if read:
            module.recompile()


def _is_shaped(node: fx.Node) -> bool:
    """True for a view of another shape, and not of another type."""
    if node.op not in ("call_method", "call_function") or node.kwargs:
        return False
    return node.target in _RESHAPES and not isinstance(node.args[1], torch.dtype)
