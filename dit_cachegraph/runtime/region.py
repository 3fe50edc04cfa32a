"""The regions of a trunk: what each compares, which values a hit remakes, and how. Worked out once
for each set of spans that is asked for."""

from collections.abc import Sequence

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import ArgumentRoles, Effect, Region, Trunk
from dit_cachegraph.policy.rule import Probe, ProbeKind, Span

NO_GRID = (
    "seacache filters over the grid of the tokens, which this model's input doesn't show: say it "
    "as seacache_grid=(height, width), in tokens"
)
DIMS_WITH_A_GRID = (4, 5)
"""Of an image `[B, C, H, W]` and of a video `[B, C, F, H, W]`."""


def plan_regions(trunk: Trunk, roles: ArgumentRoles, spans: Sequence[Span]) -> tuple[Region, ...]:
    """The regions of a trunk, without the empty ones.

    Raises:
        InvalidConfig: they overlap, lie outside the trunk, or have nothing to compare.
    """
    regions, end = [], 0
    for span in spans:
        if not end <= span.start <= span.stop <= trunk.num_blocks:
            raise InvalidConfig(
                f"the blocks {span.start} to {span.stop - 1} can't be a region: those from {end} "
                f"to {trunk.num_blocks - 1} are left"
            )
        if span.start < span.stop:
            regions.append(_plan_region(trunk, roles, span))
            end = span.stop
    return tuple(regions)


def _plan_region(trunk: Trunk, roles: ArgumentRoles, span: Span) -> Region:
    """Block `i` is segment `i + 1`, so the region's segments are `start + 1 .. stop`."""
    start, stop = span.start, span.stop
    made = range(trunk.num_arguments, trunk.num_slots)
    live_outs = [s for s in made if start < trunk.made_by[s] <= stop < trunk.last_use[s]]
    dead_on_hit = [s for s in made if trunk.made_by[s] <= start < trunk.last_use[s] <= stop]
    read = {slot for segment in trunk.segments[start + 1 : stop + 1] for slot in segment.inputs}
    probe_from, boundary, probe_in, probe_out = _probe(trunk, roles, span)
    return Region(
        start=start,
        stop=stop,
        probe_from=probe_from,
        probe_boundary=boundary,
        probe_in=probe_in,
        probe_out=probe_out,
        effects=tuple(_effect(trunk, slot, start) for slot in live_outs),
        dead_on_hit=tuple(dead_on_hit),
        injected=tuple(control for control in trunk.injected if control.slot in read),
    )


def _probe(
    trunk: Trunk, roles: ArgumentRoles, span: Span
) -> tuple[int, int, int | None, int | None]:
    """Boundaries and slots of what is compared."""
    start = span.start
    if span.probe is None:
        return start, start, None, None
    if span.probe.kind is ProbeKind.LATENTS:
        if not roles.latents:
            raise InvalidConfig("this rule compares the model's input, and this graph has none")
        return start, start, None, roles.latents[0]
    if span.probe.kind is ProbeKind.MODULATED_INPUT:
        if isinstance(trunk.modulated_input, str):
            raise InvalidConfig(trunk.modulated_input)
        if start > 0:
            raise InvalidConfig(f"only block 0 has a signal, and this region begins at {start}")
        _check_grid(roles, span.probe)
        return start, start, None, None
    if span.probe.kind is ProbeKind.HIDDEN:
        return start, start, None, _stream_at(trunk, start)
    slots = trunk.streams[trunk.probe_stream].slots
    first = next((i for i in range(span.probe_from, start) if slots[i] is not None), None)
    last = next((i for i in range(start, span.probe_from, -1) if slots[i] is not None), None)
    if first is None or last is None or first >= last:
        raise InvalidConfig(
            f"there is no stream whose residual over the blocks {span.probe_from} to {start - 1} "
            "could be compared: name more first blocks"
        )
    return first, last, slots[first], slots[last]


def _check_grid(roles: ArgumentRoles, probe: Probe) -> None:
    """Raises InvalidConfig where a filter needs the tokens' grid and no step will show it. Whether
    the tokens fill it depends on the sizes of a step."""
    needs_grid = probe.noise_filter is not None and probe.noise_filter.grid is None
    if needs_grid and roles.num_latent_dims not in (None, *DIMS_WITH_A_GRID):
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
            return Effect(live_out, stream.slots[start], i == trunk.probe_stream, not is_sum)
    return Effect(live_out, None, False, True)
