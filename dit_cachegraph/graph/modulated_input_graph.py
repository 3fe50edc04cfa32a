"""The modulated input of block 0: what the timestep makes of the stream before anything else reads
it. By dataflow that is what the block's first matrix product on the stream is fed:

    n = layer_norm(x); m = n * (1 + scale(t)) + shift(t); q = linear(m, w)      ->      m

Its few nodes become a graph of their own, from the values at the first border. It is run as it is,
and only where a rule asks for it: it costs no compile time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from dit_cachegraph.graph.assign_nodes import Assignment
from dit_cachegraph.graph.fx_utils import is_size_arithmetic, is_weight, target_name
from dit_cachegraph.graph.match_pattern import Pattern
from dit_cachegraph.plan import ArgumentRoles

PRODUCTS = frozenset(
    {
        "addmm",
        "baddbmm",
        "bmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "einsum",
        "linear",
        "matmul",
        "mm",
        "scaled_dot_product_attention",
    }
)


@dataclass(frozen=True, slots=True)
class ModulatedInputGraph:
    """The graph of the modulated input, what it reads, and the node that it ends in."""

    gm: fx.GraphModule
    inputs: tuple[fx.Node, ...]
    modulated_input: fx.Node


def modulated_input_graph(
    gm: fx.GraphModule, assignment: Assignment, pattern: Pattern
) -> ModulatedInputGraph | str:
    """The graph of the modulated input of block 0, or a sentence why there is none."""
    name = assignment.blocks[0].path
    stream, block = pattern.probe.at[0], assignment.nodes_of(1)
    assert stream is not None
    modulated_input = _first_operand(block, stream)
    if modulated_input is None:
        return f"{name} has no matrix product on its stream, so that there is no modulated input"
    carried = {s.at[0] for s in pattern.streams}
    if not _is_modulated(modulated_input, carried, assignment, pattern.roles):
        return (
            f"{name} does not modulate its input by the timestep before its first matrix product: "
            "choose a rule that compares something else"
        )
    inner = _inner_nodes(modulated_input, assignment)
    for node in block[: block.index(modulated_input)]:
        if node not in inner and _acts_on(node, inner):
            return f"`{node.name}` in {name} acts on what leads to its modulated input"
    return _build(gm, modulated_input, [n for n in assignment.nodes if n in inner])


def _first_operand(block: Sequence[fx.Node], stream: fx.Node) -> fx.Node | None:
    """What the first matrix product on the stream reads of it."""
    moving = {stream}
    for node in block:
        operands = [arg for arg in node.all_input_nodes if arg in moving]
        if operands and target_name(node) in PRODUCTS:
            return operands[0]
        if operands:
            moving.add(node)
    return None


def _is_modulated(
    modulated_input: fx.Node,
    carried: set[fx.Node | None],
    assignment: Assignment,
    roles: ArgumentRoles,
) -> bool:
    """True if the timestep reaches the modulated input by a way of its own, not within a stream. A
    fragment that does not get the timestep gets what was made of it from outside."""
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    told = {arguments[i] for i in (*roles.timesteps, *roles.host_timesteps)}
    stack, seen = [modulated_input], {modulated_input}
    while stack:
        node = stack.pop()
        if node in carried:
            continue
        from_outside = node.op == "placeholder" and not is_weight(node)
        if node in told or (from_outside and not roles.embeds_timestep):
            return True
        new = [arg for arg in node.all_input_nodes if arg not in seen]
        seen.update(new)
        stack += new
    return False


def _inner_nodes(modulated_input: fx.Node, assignment: Assignment) -> set[fx.Node]:
    """The nodes of block 0 that lead to the modulated input, and the size arithmetic that they
    read."""
    inner, stack = set(), [modulated_input]
    while stack:
        node = stack.pop()
        if node in inner or not (assignment.segment_of[node] == 1 or is_size_arithmetic(node)):
            continue
        inner.add(node)
        stack += node.all_input_nodes
    return inner


def _acts_on(node: fx.Node, inner: set[fx.Node]) -> bool:
    """True for a node whose effect the others feel, although none reads it: a write to one of them,
    or a context around them."""
    name = target_name(node)
    writes = name == "setitem" or (name.endswith("_") and not name.endswith("__"))
    opens = not node.all_input_nodes and name.startswith("_enter_")
    return opens or (writes and any(arg in inner for arg in node.all_input_nodes))


def _build(
    gm: fx.GraphModule, modulated_input: fx.Node, inner: Sequence[fx.Node]
) -> ModulatedInputGraph:
    own = set(inner)
    inputs = tuple(
        dict.fromkeys(arg for node in inner for arg in node.all_input_nodes if arg not in own)
    )
    graph = fx.Graph()
    env = {node: graph.placeholder(node.name) for node in inputs}
    for node in inner:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output((env[modulated_input],))
    graph.lint()
    return ModulatedInputGraph(
        fx.GraphModule(gm, graph, class_name="ModulatedInput"), inputs, modulated_input
    )
