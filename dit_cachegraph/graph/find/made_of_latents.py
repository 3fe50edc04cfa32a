"""Which values have something of what is denoised in them."""

from collections.abc import Sequence

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_parameter, value_of
from dit_cachegraph.graph.likeness import likeness
from dit_cachegraph.graph.node_effects import written_by


def made_of_latents(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """The arguments that are shaped most like an output, and all that depends on them."""
    made = set(_latents(nodes))
    for node in nodes:
        if not made.isdisjoint(node.all_input_nodes):
            made.add(node)
            made.update(written_by(node))
    return frozenset(made)


def _latents(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    results = nodes[-1].args[0]
    assert isinstance(results, list | tuple), "Dynamo returns one flat tuple"
    alike = {n: likeness(n, results) for n in nodes if n.op == "placeholder" and _is_of_user(n)}
    most = max(alike.values(), default=0)
    return [node for node, shared in alike.items() if shared == most > 0]


def _is_of_user(node: fx.Node) -> bool:
    value = value_of(node)
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and not is_parameter(node)
