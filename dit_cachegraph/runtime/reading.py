"""What a step reads from the device before it decides, in one copy to the host:

    [each timestep | latents sample] [(sum|v - a|, sum|a|) of each sample | injected]

the call itself    as it is, before anything runs; what its timesteps say is worked out on the host.
                   A schedule reads no more, and within `request(key)` nothing
first region       its diff, in one compiled pass
each further       its diff, in a copy of its own, where the rule has to look
injected           those residuals that aren't the objects of the last computed step

A copy begins as soon as its numbers exist, and is waited for where they are needed. Where ranks
share the sample, all of it is what they gather: the call's as it begins, sums as they are made.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledSegment, CompiledTrunk
from dit_cachegraph.policy.rule import Change, Probe, ProbeKind, Sums
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.ranks.shared_call import SharedCall
from dit_cachegraph.ranks.shared_sums import OTHER_SUMS, shared_sums
from dit_cachegraph.ranks.standing import Standing
from dit_cachegraph.requests.handoff import CallHandoff
from dit_cachegraph.requests.latents import LatentsSample
from dit_cachegraph.requests.schedule import Clock
from dit_cachegraph.segments.slots import Values, gatherer, tensors

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
        fitting = anchor if self.fits(anchor) else None
        return Probed(self.probe, self.hidden, self.hidden_in, fitting)

    def fits(self, anchor: Tensor | None) -> bool:
        """True if the probe can be compared with what is kept of it."""
        if anchor is None or anchor.dim() != self.hidden.dim():
            return False
        num_channels = -(-self.hidden.shape[-1] // self.probe.downsample_factor)
        return anchor.shape == (*self.hidden.shape[:-1], num_channels)


class Asked(NamedTuple):
    """What is to be compared at a call: `probed`, None for a schedule; how far the model's input
    and output `moved`, [B, 2] each; and the sums of `injected` residuals that may have."""

    probed: Probed | None = None
    moved: tuple[Tensor, Tensor] | None = None
    injected: Tensor | None = None


class Begun(NamedTuple):
    """What the call itself shows, on its way: the latents sample where it `has_sample`, then
    timesteps. `host_clock` is of those that need no copy."""

    copy: ops.HostCopy
    has_sample: bool = False
    num_timesteps: int = 0
    host_clock: Clock = ()


class Reading(NamedTuple):
    """`clock` is None where there is no timestep or it was not read; `sums` are those of the probe,
    empty where nothing was compared; `change` is how the model's input and output moved, where that
    was asked for; `injected` are the sums of residuals, as they were given. `why_apart`: ranks that
    share the sample may not decide alike."""

    clock: Clock | None = None
    sample: LatentsSample | None = None
    sums: Sums = NO_SUMS
    change: Change | None = None
    injected: tuple[float, ...] = ()
    why_apart: str | None = None


class StepReader:
    """Reads the numbers that a decision needs out of the values of one call. `ranks` are those that
    share its sample, None where there are no others."""

    def __init__(self, compiled: CompiledTrunk, ranks: Ranks | None) -> None:
        roles, trunk = compiled.roles, compiled.trunk
        self.ranks, self._num_injected = ranks, len(trunk.injected)
        self._measure = compiled.measure
        self._sizes = gatherer(trunk.measure_sizes)
        self._timesteps = gatherer(roles.timesteps)
        self._host_timesteps = gatherer(roles.host_timesteps)
        self._sampled = gatherer(roles.sampled_latents)
        self._is_batched = roles.has_batched_sample(trunk.batch_dim)
        self._places = lru_cache(maxsize=1024)(ops.sample_places)
        modulated = trunk.modulated_input
        self._batch_dims = {
            ProbeKind.RESIDUAL: trunk.batch_dim,
            ProbeKind.HIDDEN: trunk.batch_dim,
            ProbeKind.MODULATED_INPUT: None if isinstance(modulated, str) else modulated.batch_dim,
            ProbeKind.LATENTS: None if trunk.batch_dim is None else 0,
        }

    def begin(self, values: Values, handoff: CallHandoff | None, *, needs_device: bool) -> Begun:
        """Begin to copy what the call shows of itself: timesteps and latents sample, or those that
        were handed on by an earlier fragment. Without `needs_device` nothing that lies there."""
        host = tensors(self._host_timesteps(values)) if handoff is None or not needs_device else []
        samples, timesteps = self._shown(values, handoff) if needs_device else ([], [])
        copy = ops.HostCopy(samples)
        copy.add(timesteps, are_callers=True)
        return Begun(copy, bool(samples), len(timesteps), _clocks(host))

    def begin_shared(
        self, values: Values, handoff: CallHandoff | None, standing: Standing
    ) -> SharedCall:
        """The same of all ranks, of which each tells how it stands."""
        assert self.ranks is not None
        host = tensors(self._host_timesteps(values)) if handoff is None else []
        samples, timesteps = self._shown(values, handoff)
        return SharedCall(self.ranks, samples, [*host, *timesteps], standing)

    def _shown(
        self, values: Values, handoff: CallHandoff | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The latents sample, if there are latents, and the timesteps on the device."""
        is_batched = self._is_batched and handoff is None
        timesteps, latents = tensors(self._timesteps(values)), tensors(self._sampled(values))
        if handoff is not None:
            latents = [t for t in handoff.latents if t.is_floating_point()][:1]
            timesteps = list(handoff.timesteps)
        return [self._sample(latents, is_batched)] if latents else [], timesteps

    def _sample(self, given: Sequence[Tensor], is_batched: bool) -> Tensor:
        """Of several latents as of one flat tensor."""
        latents = given[0] if len(given) == 1 else torch.cat([t.reshape(-1) for t in given])
        num_samples = latents.shape[0] if is_batched else 1
        places = self._places(num_samples, latents.numel(), latents.device)
        return ops.latents_sample(latents, places, is_batched=is_batched)

    def finish(self, begun: Begun, values: Values, asked: Asked) -> Reading:
        """Compare, and read all of it."""
        begun.copy.add(self._compared(values, asked))
        numbers = iter(begun.copy.read())
        sample = next(numbers).float().numpy() if begun.has_sample else None
        clock = (*begun.host_clock, *_clocks(islice(numbers, begun.num_timesteps)))
        return _with_sums(Reading(clock or None, sample), list(numbers), asked)

    def read_shared(self, shared: SharedCall) -> Reading:
        """What the call shows of itself on all ranks."""
        sample, timesteps, why_apart = shared.read()
        clock = _clocks(timesteps) or None
        return Reading(clock, None if sample is None else sample.numpy(), why_apart=why_apart)

    def add_shared_sums(
        self, reading: Reading, shared: SharedCall, values: Values, asked: Asked
    ) -> Reading:
        """Compare, and add up what all ranks compared."""
        assert self.ranks is not None
        latents = tensors(self._sampled(values))
        batch = max([t.shape[0] for t in latents if t.dim() > 0], default=1)
        # Of each sample two for the probe, the model's input and output, and what is injected.
        room = 2 * batch * (3 + self._num_injected)
        found = shared_sums(self.ranks, self._compared(values, asked), room, shared.device)
        if found is None:
            return reading._replace(why_apart=OTHER_SUMS)
        return _with_sums(reading, found, asked)

    def _compared(self, values: Values, asked: Asked) -> list[Tensor]:
        injected = [] if asked.injected is None else [asked.injected]
        return [*self._tables(values, asked), *injected]

    def _tables(self, values: Values, asked: Asked) -> Sequence[Tensor]:
        """Sums [B, 2]."""
        probed = asked.probed
        if probed is None:
            return ()
        is_known, moved = probed.anchor is not None, asked.moved or ()
        if probed.hidden_in is not None and probed.probe == Probe(ProbeKind.RESIDUAL):
            return (self._measured(values, probed), *(moved if is_known else ()))
        return (self._sums(probed), *moved) if is_known else ()

    def _measured(self, values: Values, probed: Probed) -> Tensor:
        """The diff of a whole residual by one compiled pass. With nothing to compare with, what
        comes back is not looked at."""
        previous = probed.hidden if probed.anchor is None else probed.anchor
        inputs = [*self._sizes(values), probed.hidden, probed.hidden_in, previous]
        (measured,) = self._measure(inputs)
        assert isinstance(measured, Tensor)
        return measured

    def read_region(self, probed: Probed) -> Sums:
        """The diff of a further region."""
        return sums_of(*ops.HostCopy([self.of_all_ranks(self._sums(probed))]).read())

    def of_all_ranks(self, sums: Tensor) -> Tensor:
        """Added up over those that share the sample."""
        return sums if self.ranks is None else self.ranks.summed(sums)

    def _sums(self, probed: Probed) -> Tensor:
        assert probed.anchor is not None
        kind, downsample_factor, important, _ = probed.probe
        return ops.probe_sums(
            probed.hidden, probed.hidden_in, probed.anchor, self._batch_dims[kind],
            downsample_factor, important,
        )  # fmt: skip


def plain_measure(batch_dim: int | None) -> CompiledSegment:
    """The fused diff, not compiled: of streams of any size."""

    def measure(inputs: list[object]) -> Sequence[object]:
        hidden, hidden_in, previous = (t for t in inputs if isinstance(t, Tensor))
        return (ops.probe_sums(hidden, hidden_in, previous, batch_dim),)

    return measure


def _with_sums(reading: Reading, numbers: Sequence[Tensor], asked: Asked) -> Reading:
    """With what was compared, on the host: tables of sums, then what is injected."""
    num_tables = len(numbers) - (asked.injected is not None)
    sums = [sums_of(table) for table in numbers[:num_tables]]
    return Reading(
        reading.clock,
        reading.sample,
        sums=sums[0] if sums else NO_SUMS,
        change=Change(sums[1], sums[2]) if len(sums) == 3 else None,
        injected=tuple([number for moved in numbers[num_tables:] for number in moved.tolist()]),
        why_apart=reading.why_apart,
    )


def _clocks(timesteps: Iterable[Tensor]) -> Clock:
    return tuple([number for timestep in timesteps for number in ops.clock(timestep)])


def sums_of(table: Tensor) -> Sums:
    """Sums on the host, [B, 2]."""
    of_samples = table.tolist()
    return Sums(*zip(*of_samples, strict=True)) if of_samples else NO_SUMS
