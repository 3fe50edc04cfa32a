"""A run of segments, as a graph sees it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dit_cachegraph.plan import Trunk
from dit_cachegraph.segments.crossing import crossing_of
from dit_cachegraph.segments.slots import Values, gatherer


class Run(NamedTuple):
    """The segments `start..stop-1`: what they read of weights and of all else, what they leave, and
    what dies in them."""

    start: int
    stop: int
    inputs: tuple[int, ...]
    inputs_of: Callable[[Values], Sequence[object]]
    weights: tuple[int, ...]
    weights_of: Callable[[Values], Sequence[object]]
    leaves: tuple[int, ...]
    dead: tuple[int, ...]
    name: str
    why_eager: str | None

    @property
    def place(self) -> tuple[int, int]:
        return self.start, self.stop


def run_of(trunk: Trunk, start: int, stop: int) -> Run:
    """That of the segments `start..stop-1`."""
    reads, leaves, dead = crossing_of(trunk, start, stop)
    weights = tuple(slot for slot in reads if slot in trunk.weights)
    inputs = tuple(slot for slot in reads if slot not in trunk.weights)
    segments = trunk.segments[start:stop]
    causes = [f"in {s.name} {s.why_eager}" for s in segments if s.why_eager is not None]
    names = dict.fromkeys([segments[0].name, segments[-1].name])
    return Run(
        start=start,
        stop=stop,
        inputs=inputs,
        inputs_of=gatherer(inputs),
        weights=weights,
        weights_of=gatherer(weights),
        leaves=leaves,
        dead=dead,
        name=" to ".join(names),
        why_eager=next(iter(causes), None),
    )
