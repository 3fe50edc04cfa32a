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
from dit_cachegraph.runtime.slots import Values, gatherer, tensors

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

    @property
    def is_residual_alone(self) -> bool:
        """True for what one compiled pass makes with the clock: the diff of a whole residual."""
        probed = self.probed
        if probed is None or (probed.anchor is not None and self.moved is not None):
            return False
        return probed.hidden_in is not None and probed.probe == Probe(ProbeKind.RESIDUAL)


class Reading(NamedTuple):
    """`clock` is None where there is no timestep or it was not read; `sums` are those of the probe,
    empty where nothing was compared; `change` is how the model's input and output moved, where that
    was asked for; `injected` are the sums of residuals, as they were given."""

    clock: Clock | None = None
    sample: LatentsSample | None = None
    sums: Sums = NO_SUMS
    change: Change | None = None
    injected: tuple[float, ...] = ()


class StepReader:
    """Reads the numbers that a decision needs out of the values of one call."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        roles, trunk = compiled.roles, compiled.trunk
        self._measure = compiled.measure
        self._sizes = gatherer(trunk.measure_sizes)
        self._timesteps = gatherer(roles.timesteps)
        self._host_timesteps = gatherer(roles.host_timesteps)
        self._sampled = gatherer(roles.sampled_latents)
        self._is_batched = roles.has_batched_sample(trunk.batch_dim)
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
        if handoff is None or not asked.needs_device:
            return self._read(values, asked)
        floats = [t for t in handoff.latents if t.is_floating_point()]
        own_parts = [*map(ops.clock, handoff.timesteps), *map(ops.latents_sample, floats[:1])]
        own = _split(own_parts, (2 * len(handoff.timesteps),), len(floats[:1]), ())
        reading = self._read(values, asked._replace(needs_device=asked.probed is not None))
        return reading._replace(clock=own.clock, sample=own.sample)

    def _read(self, values: Values, asked: Asked) -> Reading:
        timesteps = tensors(self._timesteps(values)) if asked.needs_device else []
        latents = _joined(tensors(self._sampled(values))) if asked.needs_device else []
        num_rows = len(latents[0]) if latents and self._is_batched else len(latents)
        num_clock, probed = 2 * len(timesteps), asked.probed
        if probed is not None and asked.is_residual_alone:
            parts = [self._measured(values, probed, (*timesteps, *latents))]
            num_sample = ops.LATENTS_SAMPLE_SIZE * num_rows
            num_sums = [len(parts[0]) - num_clock - num_sample]
        else:
            tables = [table.reshape(-1) for table in self._tables(asked)]
            num_sums = [len(table) for table in tables]
            samples = [ops.latents_sample(one, is_batched=self._is_batched) for one in latents]
            parts = [*map(ops.clock, timesteps), *tables, *samples]
        if asked.injected is not None:
            parts.append(asked.injected)
        # On another device than the stream: reading them waits for nothing.
        host = [n for t in tensors(self._host_timesteps(values)) for n in ops.clock(t).tolist()]
        return _split(parts, (num_clock, *num_sums), num_rows, host)

    def _measured(self, values: Values, probed: Probed, others: Sequence[Tensor]) -> Tensor:
        """Clock, sums and latents sample by one compiled pass. With nothing to compare with, what
        comes back as the diff is not looked at."""
        previous = probed.hidden if probed.anchor is None else probed.anchor
        inputs = [*self._sizes(values), probed.hidden, probed.hidden_in, previous, *others]
        (measured,) = self._measure(inputs)
        assert isinstance(measured, Tensor)
        return measured

    def _tables(self, asked: Asked) -> Sequence[Tensor]:
        """Sums [B, 2] that are made by passes of their own."""
        if asked.probed is None or asked.probed.anchor is None:
            return ()
        return (self._sums(asked.probed), *(asked.moved or ()))

    def read_region(self, probed: Probed) -> Sums:
        """The diff of a further region."""
        return read_sums(self._sums(probed))

    def _sums(self, probed: Probed) -> Tensor:
        assert probed.anchor is not None
        kind, downsample_factor, important, _ = probed.probe
        return ops.probe_sums(
            probed.hidden, probed.hidden_in, probed.anchor, self._batch_dims[kind],
            downsample_factor, important,
        )  # fmt: skip


def _joined(latents: list[Tensor]) -> list[Tensor]:
    """Latents as their sample is taken of them: several as one flat tensor."""
    return [torch.cat([t.reshape(-1) for t in latents])] if len(latents) > 1 else latents


def _split(
    parts: Sequence[Tensor], lengths: Sequence[int], num_rows: int, host_clock: Sequence[float]
) -> Reading:
    """Copy the parts to the host as one vector, and take that apart: the one place that knows its
    order. `lengths` are those of the clocks, and of each table of sums; `num_rows` of the latents
    sample come after them."""
    if not parts:
        return Reading(tuple(host_clock) or None)
    vector = ops.to_host(parts[0] if len(parts) == 1 else torch.cat(list(parts)))
    *ends, end = accumulate((*lengths, ops.LATENTS_SAMPLE_SIZE * num_rows))
    numbers = vector[: ends[-1]].tolist()
    clock = (*host_clock, *numbers[: ends[0]])
    sums = [_sums(numbers[start:stop]) for start, stop in pairwise(ends)]
    sample = vector.numpy()[ends[-1] : end] if num_rows else None
    change = Change(sums[1], sums[2]) if len(sums) == 3 else None
    injected = tuple(vector[end:].tolist()) if len(vector) > end else ()
    return Reading(clock or None, sample, sums[0] if sums else NO_SUMS, change, injected)


def _sums(numbers: Sequence[float]) -> Sums:
    return Sums(tuple(numbers[0::2]), tuple(numbers[1::2]))


def read_sums(sums: Tensor) -> Sums:
    """Sums [B, 2], in one copy."""
    return _sums(ops.to_host(sums.reshape(-1)).tolist())
