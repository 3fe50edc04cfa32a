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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.cut.borders import Borders, SegmentGraph
from dit_cachegraph.graph.cut.find_samples import RANKS, find_samples
from dit_cachegraph.graph.cut.measure_graph import MeasureGraph, batch_dim_of, measure_graph
from dit_cachegraph.graph.cut.modulated_input_graph import (
    ModulatedInputGraph,
    modulated_input_graph,
)
from dit_cachegraph.graph.cut.pieces import build_graph, piece_of
from dit_cachegraph.graph.cut.share_segments import Piece, Shared, share_segments, signature_of
from dit_cachegraph.graph.cut.why_eager import why_eager
from dit_cachegraph.graph.fx_utils import is_weight, layout_key, value_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment, segment_name
from dit_cachegraph.graph.understand.check_share import costs_of
from dit_cachegraph.graph.understand.find_identity import adds_to
from dit_cachegraph.graph.understand.find_injected import find_injected
from dit_cachegraph.graph.understand.find_joined import joined_of, with_parts
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.graph.understand.match_pattern import Pattern
from dit_cachegraph.plan import (
    ArgumentRoles,
    InjectedResidual,
    ModulatedInput,
    RankGroups,
    Samples,
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
    modulated_input: SegmentGraph | None

    @property
    def stream(self) -> Tensor:
        """The probe stream, as it is measured: without data."""
        stream = self.measure.example_inputs[-1]
        assert isinstance(stream, Tensor)
        return stream

    @property
    def device(self) -> torch.device:
        """That of the stream that is probed."""
        return self.stream.device

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


@dataclass(frozen=True, slots=True)
class _Cutting:
    """What the parts of a trunk are made from. `slots` number all values that cross a border."""

    assignment: Assignment
    pattern: Pattern
    borders: Borders
    pieces: Sequence[Piece]
    slots: Mapping[fx.Node, int]

    @property
    def device(self) -> torch.device:
        """That of the stream that is probed."""
        entry = next(node for node in self.pattern.probe.at if node is not None)
        value = value_of(entry)
        assert isinstance(value, torch.Tensor)
        return value.device


def segment_graph(
    gm: fx.GraphModule, assignment: Assignment, pattern: Pattern, groups: RankGroups
) -> Cut:
    """Cut `gm` along `assignment`. `gm` itself is left as it is. `groups`: `Trunk.groups`."""
    borders = Borders(assignment, pattern.streams)
    pieces = [piece_of(i, assignment, borders) for i in range(assignment.num_segments)]
    kinds = share_segments(pieces)
    graphs = [build_graph(gm, pieces[k.members[0]], k, borders) for k in kinds]
    cutting = _Cutting(assignment, pattern, borders, pieces, _number_slots(assignment, pieces))
    modulated = modulated_input_graph(gm, assignment, pattern)
    measure = measure_graph(assignment, borders, pattern.probe, pattern.roles)
    trunk = _trunk(cutting, _segments(cutting, kinds), modulated, measure, groups)
    return Cut(trunk, pattern.roles, tuple(graphs), measure.graph, _of_border(modulated, borders))


def _of_border(found: ModulatedInputGraph | str, borders: Borders) -> SegmentGraph | None:
    if isinstance(found, str):
        return None
    return SegmentGraph(found.gm, tuple(borders.fake(node) for node in found.inputs))


def _trunk(
    cutting: _Cutting,
    segments: Sequence[Segment],
    modulated: ModulatedInputGraph | str,
    measure: MeasureGraph,
    groups: RankGroups,
) -> Trunk:
    assignment, pattern, slots = cutting.assignment, cutting.pattern, cutting.slots
    results = tuple([_result_slot(result, slots) for result in assignment.results])
    made_by, last_use = _lives(segments, len(slots), results)
    return Trunk(
        segments=tuple(segments),
        num_arguments=sum(n.op == "placeholder" for n in assignment.nodes),
        num_slots=len(slots),
        made_by=made_by,
        last_use=last_use,
        results=results,
        streams=_streams(cutting),
        probe_stream=pattern.streams.index(pattern.probe),
        block_lists=pattern.block_lists,
        injected=_injected(cutting),
        samples=Samples(why_together=RANKS) if groups.names else _samples(cutting, segments),
        measure_sizes=tuple(slots[n] for n in measure.sizes),
        batch_dim=measure.batch_dim,
        modulated_input=_modulated_input(cutting, modulated),
        costs=costs_of(assignment),
        signature=signature_of(cutting.pieces, assignment),
        groups=groups,
        weights=frozenset(slot for node, slot in slots.items() if is_weight(node)),
    )


def _modulated_input(cutting: _Cutting, found: ModulatedInputGraph | str) -> ModulatedInput | str:
    if isinstance(found, str):
        return found
    arguments = [n for n in cutting.assignment.nodes if n.op == "placeholder"]
    roles = cutting.pattern.roles
    latents = value_of(arguments[roles.latents[0]]) if roles.latents else None
    batch_dim = batch_dim_of(value_of(found.modulated_input), latents)
    return ModulatedInput(tuple(cutting.slots[n] for n in found.inputs), batch_dim)


def _injected(cutting: _Cutting) -> tuple[InjectedResidual, ...]:
    found = find_injected(cutting.assignment, cutting.pattern)
    return tuple(InjectedResidual(cutting.slots[node], given) for node, given in found.items())


def _samples(cutting: _Cutting, segments: Sequence[Segment]) -> Samples:
    pattern, entry = cutting.pattern, cutting.pattern.probe.at[0]
    assert entry is not None
    return find_samples(
        cutting.assignment, cutting.borders, cutting.slots, segments, pattern.roles, entry
    )


def _number_slots(assignment: Assignment, pieces: Sequence[Piece]) -> dict[fx.Node, int]:
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    slots = {node: i for i, node in enumerate(arguments)}
    for piece in pieces:
        for node in piece.outputs:
            slots.setdefault(node, len(slots))
    return slots


def _segments(cutting: _Cutting, kinds: Sequence[Shared]) -> list[Segment]:
    kind_of = {i: kind for kind, shared in enumerate(kinds) for i in shared.members}
    return [_segment(i, kind_of[i], kinds[kind_of[i]], cutting) for i in range(len(cutting.pieces))]


def _segment(i: int, kind: int, shared: Shared, cutting: _Cutting) -> Segment:
    piece, slots = cutting.pieces[i], cutting.slots
    own = dict(zip(shared.places[i], piece.outputs, strict=True))
    return Segment(
        name=segment_name(i, cutting.assignment.blocks),
        kind=kind,
        inputs=tuple(slots[n] for n in (*piece.symbols, *piece.structure.entries)),
        outputs=tuple(
            slots[own[place]] if place in own else None for place in shared.output_places
        ),
        why_eager=why_eager(piece.structure, cutting.device),
    )


def _result_slot(result: object, slots: Mapping[fx.Node, int]) -> int:
    if not isinstance(result, fx.Node):
        raise CannotCut(f"the graph returns the constant {result!r}")
    return slots[result]


def _lives(
    segments: Sequence[Segment], num_slots: int, results: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each value the segment that makes it, and the last one that reads it."""
    made_by, last_use = [-1] * num_slots, [-1] * num_slots
    for i, segment in enumerate(segments):
        for slot in segment.inputs:
            last_use[slot] = i
        for out in segment.outputs:
            if out is not None:
                made_by[out] = i
    for slot in results:
        last_use[slot] = len(segments)
    return tuple(made_by), tuple(last_use)


def _streams(cutting: _Cutting) -> tuple[Stream, ...]:
    streams = with_parts(cutting.pattern.streams, cutting.assignment)
    return tuple(_stream(stream, streams, cutting) for stream in streams)


def _stream(stream: StreamNodes, streams: Sequence[StreamNodes], cutting: _Cutting) -> Stream:
    """Slots of one stream, as long as it keeps the layout it has where it first appears."""
    slots, borders, num_blocks = cutting.slots, cutting.borders, len(cutting.assignment.blocks)
    first = next(n for n in stream.at if n is not None)
    key = layout_key(borders.fake(first))
    same = [
        slots[n] if n is not None and layout_key(borders.fake(n)) == key else None
        for n in stream.at
    ]
    added = tuple(adds_to(i, stream, cutting.assignment) for i in range(num_blocks))
    joined = joined_of(stream, streams, cutting.assignment)
    return Stream(first.name, tuple(same), added, joined)
