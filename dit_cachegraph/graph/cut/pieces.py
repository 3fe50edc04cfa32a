"""One segment as a graph of its own: what it reads, and what later ones read of it.

%h = ...; %y = linear(%h, %w); %n = mul(%s0, 2); %z = view(%y, %n)      z is read further on
->  def segment(s0, h, w): y = linear(h, w); n = s0 * 2; return (view(y, n).contiguous(),)
"""

from collections.abc import Sequence

from torch import fx

from dit_cachegraph.graph.cut.borders import Borders, SegmentGraph, size_arguments
from dit_cachegraph.graph.cut.share_segments import Piece, Shared
from dit_cachegraph.graph.fx_utils import (
    is_size_argument,
    is_size_arithmetic,
    pinned_size,
    size_expression,
    value_of,
)
from dit_cachegraph.graph.structure import structure_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment


def piece_of(segment: int, assignment: Assignment, borders: Borders) -> Piece:
    segment_of = assignment.segment_of
    structure = structure_of(assignment.nodes_of(segment), borders.fake)
    outputs = [
        node
        for node in structure.nodes
        if any(u.op == "output" or segment_of[u] > segment for u in node.users)
    ]
    is_last = segment == assignment.num_segments - 1
    wanted = [r for r in assignment.results if isinstance(r, fx.Node)] if is_last else []
    arithmetic = _size_arithmetic((*structure.nodes, *wanted))
    read = dict.fromkeys(a for n in structure.nodes for a in n.all_input_nodes)
    sizes = [value_of(node) for node in (*arithmetic, *filter(is_size_argument, read))]
    shapes = [borders.fake(entry) for entry in structure.entries]
    symbols = size_arguments([*sizes, *shapes], assignment)
    outputs += [node for node in wanted if node in arithmetic]
    return Piece(structure, symbols, tuple(arithmetic), tuple(outputs))


def _size_arithmetic(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The size arithmetic that `nodes` read, or are, in an order in which it can be computed."""
    needed: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        for arg in node.all_input_nodes:
            if is_size_arithmetic(arg) and arg not in needed:
                visit(arg)
                needed[arg] = None

    for node in nodes:
        visit(node)
        if is_size_arithmetic(node):
            needed[node] = None
    return list(needed)


def build_graph(gm: fx.GraphModule, piece: Piece, shared: Shared, borders: Borders) -> SegmentGraph:
    """The graph of one kind, from its first member; placeholders first, outputs as one tuple."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    inputs = (*piece.symbols, *piece.structure.entries)
    for node in inputs:
        env[node] = graph.placeholder(node.name)
        env[node].meta["example_value"] = borders.fake(node)
    holders = {size_expression(node): env[node] for node in piece.symbols}

    def moved(node: fx.Node) -> fx.node.Argument:
        if node in env:
            return env[node]
        # A size argument may have been pinned to a number by a guard, or found equal to another
        # one: then the one that was passed stands for both.
        number = pinned_size(node)
        return holders[size_expression(node)] if number is None else number

    for node in (*piece.arithmetic, *piece.structure.nodes):
        env[node] = graph.node_copy(node, moved)
    by_place = {place: node for node, place in piece.places.items()}
    made = [by_place[place] for place in shared.output_places]
    graph.output(tuple(_at_border(graph, node, env[node], borders) for node in made))
    graph.lint()
    module = fx.GraphModule(gm, graph, class_name="Segment")
    return SegmentGraph(module, tuple(borders.fake(n) for n in inputs))


def _at_border(graph: fx.Graph, node: fx.Node, copy: fx.Node, borders: Borders) -> fx.Node:
    """Also where Dynamo traced a contiguous value: it is made of what came contiguous, and may lie
    otherwise for it."""
    if not borders.is_normalized(node):
        return copy
    contiguous = graph.call_method("contiguous", (copy,))
    contiguous.meta["example_value"] = borders.fake(node)
    return contiguous
