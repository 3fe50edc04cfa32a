"""What enters the blocks from outside beside their streams, and is shaped like one: ControlNet's
residuals, VACE's hints, an adapter's features. A replay would keep their old effect.

    hidden -> block.0 -> + control -> block.1 -> + control * scale -> block.2

Such a value is an argument, or made in the prologue. It jumps only where what the caller gave for
it does, so that is told with it: its arguments other than latents and timestep. Without any it is
no control.
"""

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import is_parameter, is_weight, size_hints, value_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_roles import Behind
from dit_cachegraph.graph.understand.match_pattern import Pattern


def find_injected(assignment: Assignment, pattern: Pattern) -> dict[fx.Node, tuple[int, ...]]:
    """The controls that any block reads, in order of their use, each with its arguments by index.
    Glue between two blocks counts to the later one."""
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    roles = pattern.roles
    others = {*roles.latents, *roles.timesteps, *roles.host_timesteps}
    given = {
        node: i
        for i, node in enumerate(arguments)
        if i not in others and not is_parameter(node) and isinstance(value_of(node), torch.Tensor)
    }
    behind, found = Behind(assignment), {}
    for node in _entering(assignment, pattern):
        sources = behind.of(node) & given.keys()
        if sources:
            found[node] = tuple(sorted(given[source] for source in sources))
    return found


def _entering(assignment: Assignment, pattern: Pattern) -> list[fx.Node]:
    """Values of a stream's shape that blocks read and that no block makes, but the streams."""
    carried = {n for s in pattern.streams for n in s.at if n is not None}
    shapes = {_shape_of(node) for node in carried} - {None}
    last, segment_of = assignment.num_segments - 1, assignment.segment_of
    read = dict.fromkeys(
        arg
        for node in assignment.nodes
        if 0 < segment_of.get(node, last) < last
        for arg in node.all_input_nodes
    )
    return [
        node
        for node in read
        if segment_of[node] <= 0
        and node not in carried
        and not is_weight(node)
        and _shape_of(node) in shapes
    ]


def _shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """As it was traced: sizes that are always equal may be written in different symbols."""
    value = value_of(node)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return None
    return size_hints(value)
