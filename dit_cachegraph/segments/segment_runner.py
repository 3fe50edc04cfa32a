"""Runs compiled segments on the values of one call."""

from collections.abc import Callable, Sequence

from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.segments.slots import Values, gatherer


class SegmentRunner:
    """The segments of one trunk: segment 0 is the prologue, `i + 1` is block `i`, the last one is
    the epilogue."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        trunk = compiled.trunk
        self._calls = tuple([_call_of(compiled, i) for i in range(len(trunk.segments))])
        self._blank: Values = [None] * (trunk.num_slots - trunk.num_arguments)
        self._num_arguments = trunk.num_arguments
        own, arguments = compiled.own_weights, range(trunk.num_arguments)
        self._own: Values = [*[own.get(slot) for slot in arguments], *self._blank]
        self._given = tuple([slot for slot in arguments if slot not in own])

    def values_of(self, args: Sequence[object]) -> Values:
        """A slot for each value of a call: with all arguments, or those that aren't weights of the
        graph's own."""
        if len(args) == self._num_arguments:
            return [*args, *self._blank]
        values = self._own.copy()
        for slot, value in zip(self._given, args, strict=True):
            values[slot] = value
        return values

    def run(self, values: Values, start: int, stop: int) -> None:
        """Run segments `start..stop-1`, dropping each value after its last use."""
        for call in self._calls[start:stop]:
            call(values)


def _call_of(compiled: CompiledTrunk, i: int) -> Callable[[Values], None]:
    """One segment, ready to run."""
    trunk, segment = compiled.trunk, compiled.trunk.segments[i]
    function, gather = compiled.functions[segment.kind], gatherer(segment.inputs)
    made = range(trunk.num_arguments, trunk.num_slots)
    dead = tuple([slot for slot in made if trunk.last_use[slot] == i])

    def call(values: Values) -> None:
        inputs = list(gather(values))
        for slot in dead:
            values[slot] = None
        for out, value in zip(segment.outputs, function(inputs), strict=True):
            if out is not None:
                values[out] = value

    return call
