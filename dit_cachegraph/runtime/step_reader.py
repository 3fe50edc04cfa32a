"""What a step reads from the device: timestep and diff, in one copy to the host."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk

Values = list[object]


class Seen(NamedTuple):
    """The clock, or None where there is no timestep or it was not read; per sample `sum|r - p|`
    and `sum|p|`, empty where no diff was asked for."""

    clock: tuple[float, ...] | None
    moved: tuple[float, ...] = ()
    size: tuple[float, ...] = ()


class StepReader:
    """Reads the numbers that a decision needs out of the values of one call."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        self._observe = compiled.observe
        self._sizes = gatherer(compiled.trunk.observe_sizes)
        self._timesteps = gatherer(compiled.roles.timesteps)
        self._host_timesteps = compiled.roles.host_timesteps

    def read_all(self, values: Values, hidden: Tensor, hidden_in: Tensor, previous: Tensor) -> Seen:
        """Clock and diff: one compiled pass over the three tensors, one copy."""
        timesteps = self._timesteps(values)
        (seen,) = self._observe([*self._sizes(values), hidden, hidden_in, previous, *timesteps])
        assert isinstance(seen, Tensor)
        numbers = seen.tolist()
        first = 2 * len(timesteps)
        half = (first + len(numbers)) // 2
        clock = (*self._host_clock(values), *numbers[:first])
        return Seen(clock or None, tuple(numbers[first:half]), tuple(numbers[half:]))

    def read_clock(self, values: Values, *, is_named: bool) -> Seen:
        """The clock alone; nothing at all from the device inside a named request."""
        on_device = () if is_named else self._timesteps(values)
        clocks = [ops.clock(t) for t in on_device if isinstance(t, Tensor)]
        numbers = torch.cat(clocks).tolist() if clocks else []
        return Seen((*self._host_clock(values), *numbers) or None)

    def _host_clock(self, values: Values) -> list[float]:
        """Timesteps on another device than the stream: reading them waits for nothing."""
        host = [values[i] for i in self._host_timesteps]
        return [n for t in host if isinstance(t, Tensor) for n in ops.clock(t).tolist()]


def gatherer(slots: Sequence[int]) -> Callable[[Values], Sequence[object]]:
    """`values` at `slots`, as a tuple."""
    if len(slots) > 1:
        return itemgetter(*slots)
    if slots:
        only = slots[0]
        return lambda values: (values[only],)
    return lambda values: ()
