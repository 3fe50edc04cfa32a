"""The regions of a trunk: what each compares, which values a hit remakes, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import ArgumentRoles, InjectedResidual, Joined, Trunk
from dit_cachegraph.planning.grid import DIMS_WITH_A_GRID, NO_GRID, PARTS_OF_A_GRID
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Probe, ProbeKind, Span


@dataclass(frozen=True, slots=True)
class Effect:
    """How one value that leaves a region is remade on a hit: `live_in` plus what is kept, or what
    is kept alone: for a mask, with no live-in of its shape, and where it `is_whole`, since a block
    made it anew and no sum leads to it. `is_hidden`: it is of the stream that is probed, or has it
    inside. Where the region puts streams into one, its live-in are `parts`, along `dim`."""

    live_out: int
    live_in: int | None
    is_hidden: bool
    is_whole: bool = False
    parts: tuple[int, ...] = ()
    dim: int = 0

    @property
    def live_ins(self) -> tuple[int, ...]:
        """The slots of what is added to."""
        return self.parts or (() if self.live_in is None else (self.live_in,))


@dataclass(frozen=True, slots=True)
class Region:
    """The blocks `start..stop-1` of a span behind one guard, and what a hit has to remake there, by
    its predictor. `probe_out` is what is compared, at boundary `probe_boundary`; what it was at
    boundary `probe_from` is subtracted: `probe_in`, which are to be put into one along `probe_dim`
    where they are several. There is neither where nothing is compared, or the modulated input.
    `injected` are those that its blocks read."""

    start: int
    stop: int
    probe: Probe | None
    predictor: Predictor
    probe_from: int
    probe_boundary: int
    probe_in: tuple[int, ...]
    probe_dim: int
    probe_out: int | None
    effects: tuple[Effect, ...]
    dead_on_hit: tuple[int, ...]
    injected: tuple[InjectedResidual, ...] = ()


def check_spans(trunk: Trunk, spans: Sequence[Span]) -> None:
    """Raises InvalidConfig where spans overlap, or lie outside the trunk."""
    end = 0
    for span in spans:
        if not end <= span.start <= span.stop <= trunk.num_blocks:
            raise InvalidConfig(
                f"the blocks {span.start} to {span.stop - 1} can't be a region: those from {end} "
                f"to {trunk.num_blocks - 1} are left"
            )
        end = span.stop if span.start < span.stop else end


def plan_region(trunk: Trunk, roles: ArgumentRoles, span: Span, predictor: Predictor) -> Region:
    """The region of a span that is not empty. Block `i` is segment `i + 1`, so its segments are
    `start + 1 .. stop`.

    Raises:
        InvalidConfig: there is nothing to compare.
    """
    start, stop = span.start, span.stop
    made = range(trunk.num_arguments, trunk.num_slots)
    live_outs = [s for s in made if start < trunk.made_by[s] <= stop < trunk.last_use[s]]
    dead_on_hit = [s for s in made if trunk.made_by[s] <= start < trunk.last_use[s] <= stop]
    read = {slot for segment in trunk.segments[start + 1 : stop + 1] for slot in segment.inputs}
    probe_from, boundary, probe_in, probe_dim, probe_out = _probe(trunk, roles, span)
    return Region(
        start=start,
        stop=stop,
        probe=span.probe,
        predictor=predictor,
        probe_from=probe_from,
        probe_boundary=boundary,
        probe_in=probe_in,
        probe_dim=probe_dim,
        probe_out=probe_out,
        effects=tuple(_effect(trunk, slot, start) for slot in live_outs),
        dead_on_hit=tuple(dead_on_hit),
        injected=tuple(control for control in trunk.injected if control.slot in read),
    )


class _Probed(NamedTuple):
    """Boundaries and slots of what is compared."""

    probe_from: int
    boundary: int
    slots_in: tuple[int, ...]
    dim: int
    slot_out: int | None


def _probe(trunk: Trunk, roles: ArgumentRoles, span: Span) -> _Probed:
    start = span.start
    if span.probe is None:
        return _Probed(start, start, (), 0, None)
    if span.probe.kind is ProbeKind.LATENTS:
        if not roles.latents:
            raise InvalidConfig("this rule compares the model's input, and this graph has none")
        return _Probed(start, start, (), 0, roles.latents[0])
    if span.probe.kind is ProbeKind.MODULATED_INPUT:
        if isinstance(trunk.modulated_input, str):
            raise InvalidConfig(trunk.modulated_input)
        if start > 0:
            raise InvalidConfig(f"only block 0 has a signal, and this region begins at {start}")
        _check_grid(trunk, roles, span.probe)
        return _Probed(start, start, (), 0, None)
    if span.probe.kind is ProbeKind.HIDDEN:
        return _Probed(start, start, (), 0, _stream_at(trunk, start))
    return _probed_residual(trunk, span)


def _probed_residual(trunk: Trunk, span: Span) -> _Probed:
    """What the first blocks add to the stream that is probed, from where it begins among them; or
    to the one that it has become a part of, up to the first of them."""
    start, hidden = span.probe_from, trunk.streams[trunk.probe_stream]
    others = [s for s in trunk.streams if s.joined is not None and s.joined.block <= start]
    for stream in (hidden, *(s for s in others if _has_probe(trunk, s.joined))):
        slots, joined = stream.slots, stream.joined
        last = next((i for i in range(span.start, start, -1) if slots[i] is not None), start)
        if last > start and joined is not None and joined.block == start:
            if parts := _parts_of(trunk, joined, start):
                return _Probed(start, last, parts, joined.dim, slots[last])
            continue
        for i, slot in enumerate(slots[start:last], start):
            if slot is not None:
                return _Probed(i, last, (slot,), 0, slots[last])
    raise InvalidConfig(
        f"there is no stream whose residual over the blocks {start} to {span.start - 1} could be "
        "compared: name more first blocks, or let one DBCache go over all lists"
    )


def _check_grid(trunk: Trunk, roles: ArgumentRoles, probe: Probe) -> None:
    """Raises InvalidConfig where a filter needs the tokens' grid and no step will show it. Whether
    the tokens fill it depends on the sizes of a step; a part of them may fill a grid of its own,
    whose spectrum is another one."""
    if probe.noise_filter is None:
        return
    if trunk.groups.of_tokens:
        raise InvalidConfig(PARTS_OF_A_GRID.format(group=trunk.groups.of_tokens[0]))
    if probe.noise_filter.grid is None and roles.num_latent_dims not in (None, *DIMS_WITH_A_GRID):
        raise InvalidConfig(NO_GRID)


def _stream_at(trunk: Trunk, boundary: int) -> int:
    """The stream that is probed, or where it has another shape there, the first that has not."""
    hidden = trunk.streams[trunk.probe_stream].slots[boundary]
    others = [stream.slots[boundary] for stream in trunk.streams]
    found = next((slot for slot in (hidden, *others) if slot is not None), None)
    if found is None:
        raise InvalidConfig(f"no stream crosses the border before block {boundary}")
    return found


def _effect(trunk: Trunk, live_out: int, start: int) -> Effect:
    """With the value of the same stream where the region begins."""
    for i, stream in enumerate(trunk.streams):
        if live_out in stream.slots:
            is_sum = all(stream.is_added_to[start : trunk.made_by[live_out]])
            is_hidden = i == trunk.probe_stream or _has_probe(trunk, stream.joined)
            if is_sum and (parts := _parts_of(trunk, stream.joined, start)):
                assert stream.joined is not None
                return Effect(live_out, None, is_hidden, parts=parts, dim=stream.joined.dim)
            return Effect(live_out, stream.slots[start], is_hidden, not is_sum)
    return Effect(live_out, None, False, True)


def _has_probe(trunk: Trunk, joined: Joined | None) -> bool:
    """True for what the stream that is probed became a part of, each sample by itself."""
    if joined is None or joined.dim == trunk.batch_dim:
        return False
    return trunk.probe_stream in joined.parts


def _parts_of(trunk: Trunk, joined: Joined | None, start: int) -> tuple[int, ...]:
    """Where the region begins, the streams that become one in it; none where they aren't there yet,
    or are made anew before."""
    if joined is None or start > joined.block:
        return ()
    streams = [trunk.streams[part] for part in joined.parts]
    slots = [stream.slots[start] for stream in streams if stream.slots[joined.block] is not None]
    found = tuple([slot for slot in slots if slot is not None])
    are_sums = all(all(stream.is_added_to[start : joined.block]) for stream in streams)
    return found if are_sums and len(found) == len(streams) else ()
