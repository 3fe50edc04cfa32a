"""What a step reads from the device before it decides, in one vector and one copy to the host:

    [(max, sum) of each timestep | (sum|v - a|, sum|a|) of each sample | latents sample | injected]

first region    all of it; the diff and what stands beside it in one compiled pass (`ops.measure`)
each further    its diff, in one copy, where the rule has to look
a schedule      timestep and latents sample alone; within `request(key)` nothing
injected        those residuals that aren't the objects of the last computed step
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.policy.rule import Change, Probe, ProbeKind, Sums
from dit_cachegraph.requests.handoff import CallHandoff
from dit_cachegraph.requests.latents import LatentsSample
from dit_cachegraph.requests.schedule import Clock
from dit_cachegraph.runtime.slots import Values, gatherer

NO_SUMS = Sums((), ())


class Probed(NamedTuple):
    """What a region compares: `hidden - hidden_in`, or `hidden` itself, with `anchor`, which is
    what is kept of it; None where nothing fits."""

    probe: Probe
    hidden: Tensor
    hidden_in: Tensor | None
    anchor: Tensor | None = None

    def against(self, anchor: Tensor | None) -> "Probed":
        """With what is kept of the probe, if that can be compared."""
        return self._replace(anchor=anchor if self.fits(anchor) else None)

    def fits(self, anchor: Tensor | None) -> bool:
        """True if the probe can be compared with what is kept of it."""
        if anchor is None or anchor.dim() != self.hidden.dim():
            return False
        num_channels = -(-self.hidden.shape[-1] // self.probe.downsample_factor)
        return anchor.shape == (*self.hidden.shape[:-1], num_channels)


class Asked(NamedTuple):
    """What is to be read of a call. `probed` is None for a schedule, `moved` how far the model's
    input and output moved, [B, 2] each, and `injected` the sums of residuals that may have;
    `needs_device` is False where nothing of the call itself has to come from there."""

    probed: Probed | None = None
    moved: tuple[Tensor, Tensor] | None = None
    injected: Tensor | None = None
    needs_device: bool = True


class Reading(NamedTuple):
    """`clock` is None where there is no timestep or it was not read; `sums` are those of the probe,
    empty where nothing was compared; `change` is how the model's input and output moved, where that
    was asked for; `injected` are the sums of residuals, as they were given."""

    clock: Clock | None = None
    sample: LatentsSample | None = None
    sums: Sums = NO_SUMS
    change: Change | None = None
    injected: tuple[float, ...] = ()


class _Layout(NamedTuple):
    """How many numbers each part of the vector has: of the clocks, of each table of sums, of the
    latents sample."""

    num_clock: int
    num_sums: tuple[int, ...]
    num_sample: int


class StepReader:
    """Reads the numbers that a decision needs out of the values of one call."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        roles, trunk = compiled.roles, compiled.trunk
        self._measure = compiled.measure
        self._sizes = gatherer(trunk.measure_sizes)
        self._timesteps = gatherer(roles.timesteps)
        self._host_timesteps = gatherer(roles.host_timesteps)
        self._sampled = gatherer(roles.sampled_latents)
        modulated = trunk.modulated_input
        self._batch_dims = {
            ProbeKind.RESIDUAL: trunk.batch_dim,
            ProbeKind.HIDDEN: trunk.batch_dim,
            ProbeKind.MODULATED_INPUT: None if isinstance(modulated, str) else modulated.batch_dim,
            ProbeKind.LATENTS: None if trunk.batch_dim is None else 0,
        }

    def read(self, values: Values, handoff: CallHandoff | None, asked: Asked) -> Reading:
        """Timestep, latents sample, and what else is asked, in one copy. What was handed on by an
        earlier fragment may lie elsewhere, and is read by itself."""
        if asked.probed is None:
            return self._read_schedule(values, handoff, asked)
        reading = self._read_probe(values, asked.probed, asked)
        if handoff is None:
            return reading
        own = _read_clock(handoff.timesteps, handoff.latents)
        return reading._replace(clock=own.clock, sample=own.sample)

    def _read_schedule(self, values: Values, handoff: CallHandoff | None, asked: Asked) -> Reading:
        if not asked.needs_device:
            reading = Reading(self._host_clock(values) or None)
        elif handoff is not None:
            reading = _read_clock(handoff.timesteps, handoff.latents)
        else:
            return self._read_parts(values, (), asked.injected)
        if asked.injected is None:
            return reading
        return reading._replace(injected=read_numbers(asked.injected))

    def _read_probe(self, values: Values, probed: Probed, asked: Asked) -> Reading:
        is_measured = probed.hidden_in is not None and probed.probe == Probe(ProbeKind.RESIDUAL)
        if probed.anchor is not None and asked.moved is not None:
            moved = (self._sums(probed), *asked.moved)
            return self._read_parts(values, moved, asked.injected)
        if is_measured:
            return self._read_measured(values, probed, asked.injected)
        tables = () if probed.anchor is None else (self._sums(probed),)
        return self._read_parts(values, tables, asked.injected)

    def _read_measured(self, values: Values, probed: Probed, injected: Tensor | None) -> Reading:
        """One compiled pass. With nothing to compare with, what comes back as the diff is not
        looked at."""
        previous = probed.hidden if probed.anchor is None else probed.anchor
        inputs = [*self._sizes(values), probed.hidden, probed.hidden_in, previous]
        latents = self._joined_latents(values)
        (measured,) = self._measure([*inputs, *self._timesteps(values), *latents])
        assert isinstance(measured, Tensor)
        num_clock = 2 * len(self._timesteps(values))
        num_sample = ops.LATENTS_SAMPLE_SIZE * len(latents)
        layout = _Layout(num_clock, (len(measured) - num_clock - num_sample,), num_sample)
        parts = [measured] if injected is None else [measured, injected]
        return _split(parts, layout, self._host_clock(values))

    def _read_parts(
        self, values: Values, tables: Sequence[Tensor], injected: Tensor | None
    ) -> Reading:
        """Sums [B, 2] that were made by passes of their own, each a table."""
        latents = self._joined_latents(values)
        parts = _Parts(_clocks(self._timesteps(values)), tables, latents, injected)
        return _read(parts, self._host_clock(values))

    def read_region(self, probed: Probed) -> Sums:
        """The diff of a further region."""
        return read_sums(self._sums(probed))

    def read_clock(self, values: Values, handoff: CallHandoff | None) -> Reading:
        """Timestep and latents sample alone."""
        return self.read(values, handoff, Asked())

    def _sums(self, probed: Probed) -> Tensor:
        assert probed.anchor is not None
        kind, downsample_factor, important, _ = probed.probe
        return ops.probe_sums(
            probed.hidden, probed.hidden_in, probed.anchor, self._batch_dims[kind],
            downsample_factor, important,
        )  # fmt: skip

    def _joined_latents(self, values: Values) -> Sequence[Tensor]:
        """Latents as their sample is taken of them: several as one flat tensor."""
        latents = [t for t in self._sampled(values) if isinstance(t, Tensor)]
        return [torch.cat([t.reshape(-1) for t in latents])] if len(latents) > 1 else latents

    def _host_clock(self, values: Values) -> Clock:
        """Timesteps on another device than the stream: reading them waits for nothing."""
        host = self._host_timesteps(values)
        return tuple([n for t in host if isinstance(t, Tensor) for n in ops.clock(t).tolist()])


class _Parts(NamedTuple):
    clocks: Sequence[Tensor]
    tables: Sequence[Tensor]
    latents: Sequence[Tensor]
    injected: Tensor | None = None


def _clocks(timesteps: Sequence[object]) -> list[Tensor]:
    return [ops.clock(t) for t in timesteps if isinstance(t, Tensor)]


def _read_clock(timesteps: Sequence[object], latents: Sequence[object]) -> Reading:
    """Of tensors that were handed on: all timesteps, and the first latents."""
    floats = [t for t in latents if isinstance(t, Tensor) and t.is_floating_point()]
    return _read(_Parts(_clocks(timesteps), (), floats[:1]), ())


def _read(parts: _Parts, host_clock: Clock) -> Reading:
    num_sums = tuple(table.numel() for table in parts.tables)
    num_sample = ops.LATENTS_SAMPLE_SIZE * len(parts.latents)
    layout = _Layout(2 * len(parts.clocks), num_sums, num_sample)
    tables = [table.reshape(-1) for table in parts.tables]
    vector = [*parts.clocks, *tables, *map(ops.latents_sample, parts.latents)]
    if parts.injected is not None:
        vector.append(parts.injected)
    return _split(vector, layout, host_clock)


def _split(parts: Sequence[Tensor], layout: _Layout, host_clock: Clock) -> Reading:
    """Copy the vector to the host, and take it apart: the one place that knows its order."""
    if not parts:
        return Reading(host_clock or None)
    vector = ops.to_host(parts[0] if len(parts) == 1 else torch.cat(list(parts)))
    lengths = (layout.num_clock, *layout.num_sums, layout.num_sample)
    ends = list(accumulate(lengths, initial=0))
    numbers = vector[: ends[-2]].tolist()
    clock = (*host_clock, *numbers[: layout.num_clock])
    tables = [_sums(numbers[start:stop]) for start, stop in pairwise(ends[1:-1])]
    sample = vector.numpy()[ends[-2] : ends[-1]] if layout.num_sample else None
    change = Change(tables[1], tables[2]) if len(tables) == 3 else None
    injected = tuple(vector[ends[-1] :].tolist()) if len(vector) > ends[-1] else ()
    return Reading(clock or None, sample, tables[0] if tables else NO_SUMS, change, injected)


def _sums(numbers: Sequence[float]) -> Sums:
    return Sums(tuple(numbers[0::2]), tuple(numbers[1::2]))


def read_sums(sums: Tensor) -> Sums:
    """Sums [B, 2], in one copy."""
    return _sums(read_numbers(sums.reshape(-1)))


def read_numbers(numbers: Tensor) -> tuple[float, ...]:
    """A vector, in one copy."""
    return tuple(ops.to_host(numbers).tolist())
