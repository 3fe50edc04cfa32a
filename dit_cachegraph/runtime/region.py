"""Which values a hit remakes, and how: worked out once for each `start..stop` that is asked for."""

from dit_cachegraph.plan import Region, Replay, Trunk


def plan_region(trunk: Trunk, start: int, stop: int) -> Region:
    """The region of blocks `start..stop-1` of a trunk.

    Block `i` is segment `i + 1`, so the region's segments are `start + 1 .. stop`.
    """
    probe = trunk.streams[trunk.probe_stream].slots
    boundary = max(i for i in range(1, start + 1) if probe[i] is not None)
    probe_in, probe_out = probe[0], probe[boundary]
    assert probe_in is not None and probe_out is not None, "the backend checked the probe stream"
    live_outs = [
        slot
        for slot in range(trunk.num_arguments, trunk.num_slots)
        if start < trunk.made_by[slot] <= stop < trunk.last_use[slot]
    ]
    dead_on_hit = [
        slot
        for slot in range(trunk.num_arguments, trunk.num_slots)
        if trunk.made_by[slot] <= start < trunk.last_use[slot] <= stop
    ]
    return Region(
        start=start,
        stop=stop,
        probe_boundary=boundary,
        probe_in=probe_in,
        probe_out=probe_out,
        replays=tuple(Replay(slot, _live_in(trunk, slot, start)) for slot in live_outs),
        dead_on_hit=tuple(dead_on_hit),
    )


def _live_in(trunk: Trunk, live_out: int, start: int) -> int | None:
    """The value of the same stream where the region begins."""
    for stream in trunk.streams:
        if live_out in stream.slots:
            return stream.slots[start]
    return None
