"""The values of a call whose samples are apart: each has a list of its own, in which the batch is
one, and those that run together are gathered.

    values[k][slot]    row k, a view of what a segment made for several, or an estimate of its own
    gather             the rows of the samples that run; what they lay in, where nothing has changed
    scatter            what was made for them, row by row

What has no batch in it is one object for all samples. A batch that compiled code may not be called
with (one sample, mostly) is filled up with copies of the last row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from dit_cachegraph.batches.rows import apart, together
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.segments.crossing import Crossing, crossing_of
from dit_cachegraph.segments.slots import Values, tensor_at


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a trunk's values once and for all."""

    compiled: CompiledTrunk
    crossing: Callable[[int, int], Crossing]
    allows_batch: Callable[[int], bool]

    @classmethod
    def of(cls, compiled: CompiledTrunk) -> "Layout":
        keep = lru_cache(maxsize=1024)
        crossing = keep(lambda a, b: crossing_of(compiled.trunk, a, b))
        return cls(compiled, crossing, keep(compiled.allows_batch))

    def size_for(self, num: int, num_samples: int) -> int:
        """The batch with which `num` of the samples are run."""
        allows = self.allows_batch
        return next((n for n in range(num, num_samples) if allows(n)), num_samples)


class _Joint(NamedTuple):
    """A value that was made for the samples `members`, and its rows as they were handed out."""

    members: tuple[int, ...]
    value: Tensor
    rows: tuple[Tensor, ...]


class JointValues:
    """The values of one call. `whole` are its arguments, and later what has no rows."""

    def __init__(self, layout: Layout, whole: Values, num_samples: int) -> None:
        self._layout, self._whole, self._num_samples = layout, whole, num_samples
        self._samples = layout.compiled.trunk.samples
        self._joint: dict[int, _Joint] = {}
        # One slot more, for the modulated input.
        self.of_samples: list[Values] = [[*whole, None] for _ in range(num_samples)]
        for slot in self._samples.sizes:
            for values in self.of_samples:
                values[slot] = 1
        for slot in self._samples.rows:
            if isinstance(value := whole[slot], Tensor):
                self._scatter(slot, tuple(range(num_samples)), value)

    def run(
        self, run: Callable[[Values, int, int], None], members: tuple[int, ...], a: int, b: int
    ) -> None:
        """Run the segments `a..b-1` for the samples `members`."""
        crossing = self._layout.crossing(a, b)
        size = self._layout.size_for(len(members), self._num_samples)
        values: Values = [None] * len(self._whole)
        for slot in crossing.reads:
            values[slot] = self._read(slot, members, size)
        run(values, a, b)
        for slot in crossing.leaves:
            self._write(slot, members, values[slot])
        for slot in crossing.dead:
            self._joint.pop(slot, None)
            for each in (self._whole, *self.of_samples):
                each[slot] = None

    def results(self) -> tuple[object, ...]:
        """What the call returns."""
        members = tuple(range(self._num_samples))
        slots = self._layout.compiled.trunk.results
        return tuple([self._read(slot, members, self._num_samples) for slot in slots])

    def put_modulated_input(self) -> None:
        """Work out the modulated input of all samples, behind all other slots."""
        compiled = self._layout.compiled
        modulated, function = compiled.trunk.modulated_input, compiled.modulated_input
        assert function is not None and not isinstance(modulated, str)
        members = tuple(range(self._num_samples))
        inputs = [self._read(slot, members, self._num_samples) for slot in modulated.inputs]
        (value,) = function(inputs)
        assert isinstance(value, Tensor)
        rows = apart(value) if modulated.batch_dim == 0 else (value,) * self._num_samples
        for values, row in zip(self.of_samples, rows, strict=True):
            values[-1] = row

    def _read(self, slot: int, members: tuple[int, ...], size: int) -> object:
        if slot in self._samples.sizes:
            return size
        if slot not in self._samples.rows:
            return self._whole[slot]
        rows = [tensor_at(self.of_samples[k], slot) for k in members]
        joint = self._joint.get(slot)
        if joint is not None and joint.members == members and _are_same(rows, joint.rows):
            return joint.value
        return together([*rows, *rows[-1:] * (size - len(rows))])

    def _write(self, slot: int, members: tuple[int, ...], value: object) -> None:
        if slot in self._samples.rows:
            assert isinstance(value, Tensor)
            self._scatter(slot, members, value)
            return
        for each in (self._whole, *self.of_samples):
            each[slot] = value

    def _scatter(self, slot: int, members: tuple[int, ...], value: Tensor) -> None:
        rows = apart(value)[: len(members)]
        self._joint[slot] = _Joint(members, value, rows)
        for k, row in zip(members, rows, strict=True):
            self.of_samples[k][slot] = row


def _are_same(rows: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(row is other for row, other in zip(rows, others, strict=True))
