"""What a step reads from the device: timestep, diff and sketch, in one copy to the host."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.policy.rule import Change, Sums
from dit_cachegraph.runtime.sketch import Sketch
from dit_cachegraph.runtime.trajectory import Clock

Values = list[object]


class Seen(NamedTuple):
    """The clock, or None where there is no timestep or it was not read; the sketch of the latents;
    per sample `sum|r - p|` and `sum|p|`, empty where no diff was asked for; how the model's input
    and output moved, where that was asked for; the sums of controls, as they were given."""

    clock: Clock | None = None
    sketch: Sketch | None = None
    moved: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    change: Change | None = None
    controls: tuple[float, ...] = ()


class StepReader:
    """Reads the numbers that a decision needs out of the values of one call."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        roles = compiled.roles
        self._observe = compiled.measure
        self._sizes = gatherer(compiled.trunk.measure_sizes)
        self._timesteps = gatherer(roles.timesteps)
        self._num_clock = 2 * len(roles.timesteps)
        self._host_timesteps = roles.host_timesteps
        self._sketched = _joiner(roles.sampled_latents)
        self._num_sketch = ops.LATENTS_SAMPLE_SIZE if roles.sampled_latents else 0

    def read_all(
        self,
        values: Values,
        hidden: Tensor,
        hidden_in: Tensor,
        previous: Tensor,
        controls: Tensor | None = None,
    ) -> Seen:
        """Clock, diff and sketch: one compiled pass over the tensors, one copy."""
        inputs = [*self._sizes(values), hidden, hidden_in, previous]
        (seen,) = self._observe([*inputs, *self._timesteps(values), *self._sketched(values)])
        assert isinstance(seen, Tensor)
        last = len(seen)
        seen = ops.to_host(seen if controls is None else torch.cat([seen, controls]))
        end = last - self._num_sketch
        numbers = seen[:end].tolist()
        first = self._num_clock
        clock = (*self._host_clock(values), *numbers[:first])
        sketch = seen.numpy()[end:last] if self._num_sketch else None
        moved, size = tuple(numbers[first::2]), tuple(numbers[first + 1 :: 2])
        return Seen(clock or None, sketch, moved, size, None, _rest(seen, last))

    def read_with(
        self, values: Values, sums: Tensor | None, controls: Tensor | None = None
    ) -> Seen:
        """Clock and sketch, and the sums of a probe that is not the fused one, in one copy."""
        seen = read_clock_of(self._timesteps(values), self._sketched(values), sums, controls)
        clock = (*self._host_clock(values), *(seen.clock or ()))
        return seen._replace(clock=clock or None)

    def read_host_clock(self, values: Values, controls: Tensor | None = None) -> Seen:
        """Nothing from the device but the sums of controls, if there are any."""
        seen = Seen(tuple(self._host_clock(values)) or None)
        return seen if controls is None else seen._replace(controls=read_numbers(controls))

    def _host_clock(self, values: Values) -> list[float]:
        """Timesteps on another device than the stream: reading them waits for nothing."""
        host = [values[i] for i in self._host_timesteps]
        return [n for t in host if isinstance(t, Tensor) for n in ops.clock(t).tolist()]


def read_clock_of(
    timesteps: Sequence[object],
    latents: Sequence[object],
    sums: Tensor | None = None,
    controls: Tensor | None = None,
) -> Seen:
    """Clock of the timesteps, sketch of the first latents, and sums [B, 2], in one copy."""
    clocks = [ops.clock(t) for t in timesteps if isinstance(t, Tensor)]
    sketched = [t for t in latents if isinstance(t, Tensor) and t.is_floating_point()][:1]
    parts = [
        *clocks,
        *([] if sums is None else [sums.reshape(-1)]),
        *map(ops.latents_sample, sketched),
    ]
    if controls is not None:
        parts.append(controls)
    if not parts:
        return Seen()
    seen = ops.to_host(torch.cat(parts))
    first = 2 * len(clocks)
    end = first + (0 if sums is None else sums.numel())
    numbers = seen[:end].tolist()
    last = end + ops.LATENTS_SAMPLE_SIZE * len(sketched)
    sketch = seen.numpy()[end:last] if sketched else None
    moved, size = tuple(numbers[first::2]), tuple(numbers[first + 1 :: 2])
    clock = tuple(numbers[:first]) or None
    return Seen(clock, sketch, moved, size, None, _rest(seen, last))


def _rest(seen: Tensor, start: int) -> tuple[float, ...]:
    """The sums of controls, nearly always none."""
    return tuple(seen[start:].tolist()) if len(seen) > start else ()


def read_sums(sums: Tensor) -> Sums:
    """Sums [B, 2], in one copy."""
    numbers = read_numbers(sums.reshape(-1))
    return Sums(numbers[0::2], numbers[1::2])


def read_numbers(numbers: Tensor) -> tuple[float, ...]:
    """A vector, in one copy."""
    return tuple(ops.to_host(numbers).tolist())


def gatherer(slots: Sequence[int]) -> Callable[[Values], Sequence[object]]:
    """`values` at `slots`, as a tuple."""
    if len(slots) > 1:
        return itemgetter(*slots)
    if slots:
        only = slots[0]
        return lambda values: (values[only],)
    return lambda values: ()


def _joiner(slots: Sequence[int]) -> Callable[[Values], Sequence[object]]:
    """`values` at `slots` as one tensor, for the sketch of latents that come in several."""
    gather = gatherer(slots)
    if len(slots) < 2:
        return gather
    return lambda values: (torch.cat([t.reshape(-1) for t in gather(values)]),)  # type: ignore[attr-defined]
