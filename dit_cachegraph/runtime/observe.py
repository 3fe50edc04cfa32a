"""What a step looks at before it decides: whose it is, and how far its probe has moved.

first region    timestep, sketch of the latents and diff, in one copy
each further    its diff, in one copy, where the rule has to look
a schedule      timestep and sketch alone; within `request(key)` nothing
controls        with the first region, those that aren't the objects of the last computed step
"""

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.policy.rule import Change, Companion, Need, Probe, ProbeKind, Rule, Sums
from dit_cachegraph.runtime.cache_state import Kept
from dit_cachegraph.runtime.commit_step import Now
from dit_cachegraph.runtime.find_image import Match
from dit_cachegraph.runtime.sight import Sight
from dit_cachegraph.runtime.step_reader import (
    Seen,
    StepReader,
    Values,
    read_clock_of,
    read_numbers,
    read_sums,
)

TIMESTEP_RANGE = 1000.0


class Observer:
    """Looks at the values of one trunk's calls."""

    def __init__(self, compiled: CompiledTrunk) -> None:
        self._reader = StepReader(compiled)
        batch_dim, signal = compiled.trunk.batch_dim, compiled.trunk.modulated_input
        self._batch_dims = {
            ProbeKind.RESIDUAL: batch_dim,
            ProbeKind.HIDDEN: batch_dim,
            ProbeKind.MODULATED_INPUT: None if isinstance(signal, str) else signal.batch_dim,
            ProbeKind.LATENTS: None if batch_dim is None else 0,
        }

    def read_first(
        self,
        values: Values,
        now: Now,
        kept: Kept | None,
        hidden: Tensor | None,
        hidden_in: Tensor | None,
        controls: Tensor | None = None,
    ) -> Seen:
        """What is read before the first region. `kept` may be of another shape; `controls` are the
        sums of those that moved."""
        rule = now.plan.rule
        probe = now.plan.spans[0].probe if now.plan.spans else None
        if probe is None or hidden is None or Need.DIFF not in rule.needs:
            return self._read_schedule(values, now, controls)
        first = None if kept is None else kept.regions[0]
        anchor = None if first is None else first.probe
        if not fits(anchor, hidden, probe):
            anchor = None
        moved = None if kept is None or kept.ends is None else kept.ends.moved
        if anchor is not None and moved is not None:
            sums = self._sums(probe, hidden, hidden_in, anchor)
            seen = self._read_with_change(values, sums, *moved, controls)
        else:
            seen = self._read_probe(values, probe, hidden, hidden_in, anchor, controls)
        if now.note is None:
            return seen
        told = self.read_clock(values, now)
        return seen._replace(clock=told.clock, sketch=told.sketch)

    def _read_schedule(self, values: Values, now: Now, controls: Tensor | None) -> Seen:
        """Within `request(key)` a schedule may do without the device's timestep."""
        rule, num_steps = now.plan.rule, now.plan.settings.common.num_inference_steps
        is_counted = Need.CLOCK not in rule.needs or num_steps is not None
        may_do_without = is_counted and not rule.needs & {Need.NOISE, Need.DIFF}
        if now.request is not None and may_do_without:
            return self._reader.read_host_clock(values, controls)
        return self.read_clock(values, now, controls)

    def _read_probe(
        self,
        values: Values,
        probe: Probe,
        hidden: Tensor,
        hidden_in: Tensor | None,
        anchor: Tensor | None,
        controls: Tensor | None,
    ) -> Seen:
        if hidden_in is not None and probe == Probe(ProbeKind.RESIDUAL):
            # With nothing to compare with, what comes back as the diff is not looked at.
            return self._reader.read_all(
                values, hidden, hidden_in, hidden if anchor is None else anchor, controls
            )
        sums = None if anchor is None else self._sums(probe, hidden, hidden_in, anchor)
        return self._reader.read_with(values, sums, controls)

    def _read_with_change(
        self,
        values: Values,
        sums: Tensor,
        input_moved: Tensor,
        output_moved: Tensor,
        controls: Tensor | None,
    ) -> Seen:
        """With what the last computed step measured of itself, in the same copy."""
        own_sums = torch.cat([sums, input_moved, output_moved])
        seen = self._reader.read_with(values, own_sums, controls)
        ends = accumulate(map(len, (sums, input_moved, output_moved)), initial=0)
        own, came_in, came_out = [
            Sums(seen.moved[start:stop], seen.size[start:stop]) for start, stop in pairwise(ends)
        ]
        return seen._replace(moved=own.moved, size=own.size, change=Change(came_in, came_out))

    def read_region(
        self, probe: Probe, hidden: Tensor, hidden_in: Tensor | None, anchor: Tensor
    ) -> Sums:
        """The diff of a further region."""
        return read_sums(self._sums(probe, hidden, hidden_in, anchor))

    def _sums(
        self, probe: Probe, hidden: Tensor, hidden_in: Tensor | None, anchor: Tensor
    ) -> Tensor:
        batch_dim = self._batch_dims[probe.kind]
        _, downsample_factor, important, _ = probe
        return ops.probe_sums(hidden, hidden_in, anchor, batch_dim, downsample_factor, important)

    def read_clock(self, values: Values, now: Now, controls: Tensor | None = None) -> Seen:
        """Timestep and sketch, and the sums of controls. What a note has may lie elsewhere."""
        if now.note is None:
            return self._reader.read_with(values, None, controls)
        told = read_clock_of(now.note.timesteps, now.note.latents)
        return told if controls is None else told._replace(controls=read_numbers(controls))


def fits(anchor: Tensor | None, hidden: Tensor, probe: Probe) -> bool:
    """True if a probe can be compared with what is kept of it."""
    if anchor is None or anchor.dim() != hidden.dim():
        return False
    num_channels = -(-hidden.shape[-1] // probe.downsample_factor)
    return anchor.shape == (*hidden.shape[:-1], num_channels)


def noise_of(match: Match, sight: Sight) -> float | None:
    """The timestep as a share of the noise range: 1 where all is noise. The first timestep of an
    image tells whether they count in thousandths."""
    first, known = match.moment.trajectory.first, match.moment.known
    if not sight.clock or not first:
        return None
    share = sight.clock[0] / (TIMESTEP_RANGE if first[0] > 1 else 1.0)
    return 1 - share if known.direction > 0 else share


def companions_of(match: Match, sight: Sight, rule: Rule, region: int) -> tuple[Companion, ...]:
    """The other guidance branches of the request that are at this step, or at the one before, with
    what they decided on a region. Told by the timestep, or by the number of steps where none is
    read."""
    image = match.image
    if image is None or not image.companions:
        return ()
    found = []
    for other in image.companions:
        if sight.clock is None:
            is_done = other.history.step == image.history.step + 1
            is_level = other.history.step == image.history.step
        else:
            is_done = other.trajectory.last == sight.clock
            is_level = other.trajectory.last == image.trajectory.last
        if is_done or is_level:
            decided = other.last_decisions if is_done else ()
            decision = decided[region] if region < len(decided) else None
            memory = other.history.seen_by(rule).memory
            found.append(Companion(decision, other.history.step - is_done, memory))
    return tuple(found)
