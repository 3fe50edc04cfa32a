"""What crosses the borders of a run of segments."""

from typing import NamedTuple

from dit_cachegraph.plan import Trunk


class Crossing(NamedTuple):
    """The slots that a run of segments reads from before, those that it makes for later, and those
    that nobody reads after it."""

    reads: tuple[int, ...]
    leaves: tuple[int, ...]
    dead: tuple[int, ...]


def crossing_of(trunk: Trunk, start: int, stop: int) -> Crossing:
    """That of the segments `start..stop-1`."""
    segments = trunk.segments[start:stop]
    made = {slot for segment in segments for slot in segment.outputs if slot is not None}
    read = dict.fromkeys(slot for segment in segments for slot in segment.inputs)
    own = range(trunk.num_arguments, trunk.num_slots)
    return Crossing(
        reads=tuple(slot for slot in read if slot not in made),
        leaves=tuple(slot for slot in sorted(made) if trunk.last_use[slot] >= stop),
        dead=tuple(slot for slot in own if start <= trunk.last_use[slot] < stop),
    )
