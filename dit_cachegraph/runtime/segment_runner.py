"""Runs compiled segments on the values of one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dit_cachegraph.plan import CompiledSegment, CompiledTrunk
from dit_cachegraph.runtime.slots import Values, gatherer


@dataclass(frozen=True, slots=True)
class _Call:
    """One segment, ready to run: gathers its inputs, and which values die with it."""

    function: CompiledSegment
    gather: Callable[[Values], Sequence[object]]
    dead: tuple[int, ...]
    outputs: tuple[int | None, ...]


class SegmentRunner:
    """The segments of one trunk: segment 0 is the prologue, `i + 1` is block `i`, the last one is
    the epilogue."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        trunk = compiled.trunk
        self._calls = tuple(_prepare(compiled, i) for i in range(len(trunk.segments)))
        self._blank = [None] * (trunk.num_slots - trunk.num_arguments)

    def values_of(self, args: Sequence[object]) -> Values:
        """A slot for each value of a call, with its arguments."""
        return [*args, *self._blank]

    def run(self, values: Values, start: int, stop: int) -> None:
        """Run segments `start..stop-1`, dropping each value after its last use."""
        for call in self._calls[start:stop]:
            inputs = list(call.gather(values))
            for slot in call.dead:
                values[slot] = None
            for out, value in zip(call.outputs, call.function(inputs), strict=True):
                if out is not None:
                    values[out] = value


def _prepare(compiled: CompiledTrunk, i: int) -> _Call:
    trunk = compiled.trunk
    segment = trunk.segments[i]
    made = range(trunk.num_arguments, trunk.num_slots)
    dead = tuple(slot for slot in made if trunk.last_use[slot] == i)
    function = compiled.functions[segment.kind]
    return _Call(function, gatherer(segment.inputs), dead, segment.outputs)
