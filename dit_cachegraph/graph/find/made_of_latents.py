"""Which values have something of what is denoised in them.

Of the arguments that are shaped most like an output, one may be another picture, given beside the
latents. It stands at a time of its own, or none: FLUX.3 embeds a timestep of 0 for it.
"""

from collections.abc import Collection, Sequence

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_parameter, value_of
from dit_cachegraph.graph.likeness import likeness, sizes_of
from dit_cachegraph.graph.node_effects import written_by
from dit_cachegraph.graph.values_read import values_read


def made_of_latents(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """The arguments that are shaped most like an output, and all that depends on them."""
    made = set(_latents(nodes))
    for node in nodes:
        if not made.isdisjoint(values_read(node)):
            made.add(node)
            made.update(written_by(node))
    return frozenset(made)


def is_of_another_picture(
    node: fx.Node, denoised: Collection[fx.Node], made: frozenset[fx.Node]
) -> bool:
    """True for a value with none of the latents in it that are in what is `denoised`, and that goes
    by fewer of the timesteps than that; `made` is `made_of_latents`."""
    own, theirs = _arguments_behind([node]), _arguments_behind(denoised)
    times, their_times = ({n for n in found if _is_a_time(n)} for found in (own, theirs))
    return not own & theirs & made and times < their_times


def _arguments_behind(values: Collection[fx.Node]) -> set[fx.Node]:
    stack, seen = list(values), set(values)
    while stack:
        inputs = [n for n in values_read(stack.pop()) if n not in seen]
        seen.update(inputs)
        stack += inputs
    return {node for node in seen if node.op == "placeholder"}


def _is_a_time(argument: fx.Node) -> bool:
    """True for what may be a timestep: a number for each sample, or one."""
    value = value_of(argument)
    is_given = isinstance(value, torch.Tensor) and not is_parameter(argument)
    return is_given and sum(size != "1" for size in sizes_of(value)) <= 1


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
