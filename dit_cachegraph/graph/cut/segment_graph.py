"""Cut the graph into segments, and find the distinct ones.

Every segment becomes a small graph of its own: what it reads as placeholders (weights among them),
what later segments read as outputs. Segments of one structure share one graph, called with their
own inputs; a block that lacks an output which its siblings have (Dynamo drops what nobody reads)
shares theirs too, and its output is dropped. Streams cross every border contiguous, so that a
block's views (FLUX's single blocks return two of one tensor) make no variants and a replayed value
has the layout that the compiled block was promised.

    y = blk0(x, w0); z = blk1(y, w1); return head(z)
    ->  kinds: blk(x, w) -> y;  head(z) -> r      segments: blk(x, w0), blk(y, w1), head(z)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.cut.borders import Borders, SegmentGraph, size_arguments
from dit_cachegraph.graph.cut.measure_graph import batch_dim_of, measure_graph
from dit_cachegraph.graph.cut.modulated_input_graph import (
    ModulatedInputGraph,
    modulated_input_graph,
)
from dit_cachegraph.graph.cut.share_segments import Piece, Shared, share_segments, signature_of
from dit_cachegraph.graph.fx_utils import (
    is_size_argument,
    is_size_arithmetic,
    layout_key,
    pinned_size,
    size_expression,
    value_of,
)
from dit_cachegraph.graph.structure import structure_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment, segment_name
from dit_cachegraph.graph.understand.check_share import costs_of
from dit_cachegraph.graph.understand.find_identity import adds_to
from dit_cachegraph.graph.understand.find_injected import find_injected
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.graph.understand.match_pattern import Pattern
from dit_cachegraph.plan import (
    ArgumentRoles,
    InjectedResidual,
    ModulatedInput,
    Segment,
    Stream,
    Trunk,
)


@dataclass(frozen=True, slots=True)
class Cut:
    """The trunk, its distinct graphs, `graphs[segment.kind]`, the graph of the fused diff, and that
    of the modulated input."""

    trunk: Trunk
    roles: ArgumentRoles
    graphs: tuple[SegmentGraph, ...]
    measure: SegmentGraph
    modulated_input: fx.GraphModule | None

    def to_text(self) -> str:
        """Every distinct segment as FX code, then the order in which they are called."""
        parts = []
        for kind, graph in enumerate(self.graphs):
            users = [s.name for s in self.trunk.segments if s.kind == kind]
            named = users[0] if len(users) == 1 else f"{users[0]} (and {len(users) - 1} more)"
            parts.append(f"# segment {kind}: {named}\n{graph.gm.code.strip()}\n")
        parts += [
            f"# {s.name} = segment {s.kind}{s.inputs} -> {s.outputs}" for s in self.trunk.segments
        ]
        return "\n".join(parts)


def segment_graph(gm: fx.GraphModule, assignment: Assignment, pattern: Pattern) -> Cut:
    """Cut `gm` along `assignment`. `gm` itself is left as it is."""
    borders = Borders(assignment, pattern.streams)
    pieces = [_piece(i, assignment, borders) for i in range(assignment.num_segments)]
    kinds = share_segments(pieces)
    slots = _number_slots(assignment, pieces)
    segments, graphs = [], []
    for shared in kinds:
        graphs.append(_build(gm, pieces[shared.members[0]], shared, borders))
    for i, piece in enumerate(pieces):
        kind = next(k for k, shared in enumerate(kinds) if i in shared.members)
        segments.append(_segment(i, kind, kinds[kind], piece, slots, assignment))
    modulated = modulated_input_graph(gm, assignment, pattern)
    sizes, batch_dim, measure = measure_graph(assignment, borders, pattern.probe, pattern.roles)
    trunk = replace(
        _trunk(assignment, segments, slots, pattern, borders),
        measure_sizes=tuple(slots[n] for n in sizes),
        batch_dim=batch_dim,
        modulated_input=modulated
        if isinstance(modulated, str)
        else _modulated_input(modulated, slots, assignment, pattern),
        injected=_injected(slots, assignment, pattern),
        signature=signature_of(pieces, assignment),
    )
    module = None if isinstance(modulated, str) else modulated.gm
    return Cut(trunk, pattern.roles, tuple(graphs), measure, module)


def _modulated_input(
    found: ModulatedInputGraph, slots: dict[fx.Node, int], assignment: Assignment, pattern: Pattern
) -> ModulatedInput:
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    latents = value_of(arguments[pattern.roles.latents[0]]) if pattern.roles.latents else None
    batch_dim = batch_dim_of(value_of(found.modulated_input), latents)
    return ModulatedInput(tuple(slots[n] for n in found.inputs), batch_dim)


def _injected(
    slots: dict[fx.Node, int], assignment: Assignment, pattern: Pattern
) -> tuple[InjectedResidual, ...]:
    found = find_injected(assignment, pattern)
    return tuple(InjectedResidual(slots[node], sources) for node, sources in found.items())


def _piece(segment: int, assignment: Assignment, borders: Borders) -> Piece:
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


def _build(gm: fx.GraphModule, piece: Piece, shared: Shared, borders: Borders) -> SegmentGraph:
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
    declared = borders.fake(node)
    value = value_of(node)
    if layout_key(declared) == layout_key(value):
        return copy
    contiguous = graph.call_method("contiguous", (copy,))
    contiguous.meta["example_value"] = declared
    return contiguous


def _number_slots(assignment: Assignment, pieces: Sequence[Piece]) -> dict[fx.Node, int]:
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    slots = {node: i for i, node in enumerate(arguments)}
    for piece in pieces:
        for node in piece.outputs:
            slots.setdefault(node, len(slots))
    return slots


def _segment(
    i: int,
    kind: int,
    shared: Shared,
    piece: Piece,
    slots: dict[fx.Node, int],
    assignment: Assignment,
) -> Segment:
    own = dict(zip(shared.places[i], piece.outputs, strict=True))
    return Segment(
        name=segment_name(i, assignment.blocks),
        kind=kind,
        inputs=tuple(slots[n] for n in (*piece.symbols, *piece.structure.entries)),
        outputs=tuple(
            slots[own[place]] if place in own else None for place in shared.output_places
        ),
    )


def _trunk(
    assignment: Assignment,
    segments: Sequence[Segment],
    slots: dict[fx.Node, int],
    pattern: Pattern,
    borders: Borders,
) -> Trunk:
    num_arguments = sum(n.op == "placeholder" for n in assignment.nodes)
    made_by, last_use = [-1] * len(slots), [-1] * len(slots)
    for i, segment in enumerate(segments):
        for slot in segment.inputs:
            last_use[slot] = i
        for out in segment.outputs:
            if out is not None:
                made_by[out] = i
    results = []
    for result in assignment.results:
        if not isinstance(result, fx.Node):
            raise CannotCut(f"the graph returns the constant {result!r}")
        results.append(slots[result])
        last_use[slots[result]] = len(segments)
    return Trunk(
        segments=tuple(segments),
        num_arguments=num_arguments,
        num_slots=len(slots),
        made_by=tuple(made_by),
        last_use=tuple(last_use),
        results=tuple(results),
        streams=tuple(_stream(s, slots, borders, assignment) for s in pattern.streams),
        probe_stream=pattern.streams.index(pattern.probe),
        block_lists=pattern.block_lists,
        injected=(),
        measure_sizes=(),
        batch_dim=None,
        modulated_input="",
        costs=costs_of(assignment),
        signature=0,
    )


def _stream(
    stream: StreamNodes, slots: dict[fx.Node, int], borders: Borders, assignment: Assignment
) -> Stream:
    """Slots of one stream, as long as it keeps the layout it has where it first appears."""
    first = next(n for n in stream.at if n is not None)
    key = layout_key(borders.fake(first))
    same = [
        slots[n] if n is not None and layout_key(borders.fake(n)) == key else None
        for n in stream.at
    ]
    added = tuple(adds_to(i, stream, assignment) for i in range(len(assignment.blocks)))
    return Stream(first.name, tuple(same), added)
