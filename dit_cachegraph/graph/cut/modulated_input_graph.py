"""The modulated input of block 0: what the timestep makes of the stream before anything else reads
it. By dataflow that is what the block's first matrix product on the stream is fed:

    n = layer_norm(x); m = n * (1 + scale(t)) + shift(t); q = linear(m, w)      ->      m

Its few nodes become a graph of their own, from the values at the first border. It is run as it is,
and only where a rule asks for it: it costs no compile time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from dit_cachegraph.graph.fx_utils import (
    free_symbols,
    is_size_argument,
    is_size_arithmetic,
    is_weight,
    storages_of,
    target_name,
    value_of,
)
from dit_cachegraph.graph.node_effects import is_context, written_by
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.match_pattern import Pattern
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
    first_product = _first_product(block, stream)
    if first_product is None:
        return f"{name} has no matrix product on its stream, so that there is no modulated input"
    product, modulated_input = first_product
    carried = {s.at[0] for s in pattern.streams}
    if not _is_modulated(modulated_input, carried, assignment, pattern.roles):
        return (
            f"{name} does not modulate its input by the timestep before its first matrix product: "
            "choose a rule that compares something else"
        )
    inner = _inner_nodes(modulated_input, assignment)
    for node in block[: block.index(product)]:
        if node not in inner and _acts_on(node, modulated_input, inner, assignment):
            return f"`{node.name}` in {name} acts on what leads to its modulated input"
    return _build(gm, modulated_input, inner, assignment)


def _first_product(block: Sequence[fx.Node], stream: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The first matrix product on the stream, and what it reads of it."""
    moving = {stream}
    for node in block:
        operands = [arg for arg in node.all_input_nodes if arg in moving]
        if operands and target_name(node) in PRODUCTS:
            return node, operands[0]
        if operands:
            moving.update((node, *written_by(node)))
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


def _acts_on(
    node: fx.Node, modulated_input: fx.Node, inner: set[fx.Node], assignment: Assignment
) -> bool:
    """True for a node before the product whose effect on the modulated input is not seen by reading
    it: a context around the others, or a write to the storage of one of them. What is written after
    the modulated input was made is felt only if the two share a storage."""
    is_before = assignment.nodes.index(node) < assignment.nodes.index(modulated_input)
    if is_context(node):
        return is_before
    written = {storage for argument in written_by(node) for storage in storages_of(argument)}
    felt = {modulated_input}
    if is_before:
        felt = inner.union(*(n.all_input_nodes for n in inner))
    return any(written & storages_of(n) for n in felt)


def _build(
    gm: fx.GraphModule, modulated_input: fx.Node, own: set[fx.Node], assignment: Assignment
) -> ModulatedInputGraph:
    inner = [node for node in assignment.nodes if node in own]
    read = dict.fromkeys(arg for node in inner for arg in node.all_input_nodes if arg not in own)
    # Compiled by itself, it takes the sizes in the shapes of what it is given.
    symbols = free_symbols(map(value_of, read))
    taken = [node for node in assignment.nodes if is_size_argument(node)]
    sizes = [node for node in taken if free_symbols([value_of(node)]) & symbols]
    inputs = tuple(dict.fromkeys((*sizes, *read)))
    graph = fx.Graph()
    env = {node: graph.placeholder(node.name) for node in inputs}
    for node in inner:
        env[node] = graph.node_copy(node, env.__getitem__)
    graph.output((env[modulated_input],))
    graph.lint()
    return ModulatedInputGraph(
        fx.GraphModule(gm, graph, class_name="ModulatedInput"), inputs, modulated_input
    )
