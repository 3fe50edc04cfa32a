"""A step, stage by stage: what is to run of it, elsewhere, and what is done between."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.planning.region import Region
from dit_cachegraph.planning.stages import Role, Stage
from dit_cachegraph.policy.rule import Decision, ProbeKind
from dit_cachegraph.recording import record, rerounded, sampled
from dit_cachegraph.runtime import replay
from dit_cachegraph.runtime.decide import EMPTY, decide_region, keep_probe
from dit_cachegraph.runtime.look import Looker
from dit_cachegraph.runtime.modulated_input import ModulatedInputReader
from dit_cachegraph.runtime.reading import Probed, StepReader
from dit_cachegraph.runtime.step import RegionStep, Step
from dit_cachegraph.segments.slots import joined_at, tensor_at

REROUNDED_EVERY = 8  # steps of a dry run


class Walker:
    """Walks the stages of steps over one trunk."""

    def __init__(self, compiled: CompiledTrunk, reader: StepReader, looker: Looker) -> None:
        self._reader, self._looker = reader, looker
        self._modulated_input = ModulatedInputReader(compiled)
        self._batch_dim = compiled.trunk.batch_dim
        self._num_segments = len(compiled.trunk.segments)

    def walk(self, step: Step) -> Iterator[tuple[int, int]]:
        """What is to run of a step: segments `start..stop-1`, which have run when it is asked for
        the next. For a region that is reused there is nothing: its estimate is put."""
        self._looker.begin(step)
        if not step.plan.settings.common.enabled:
            self._looker.look_no_further(step)
            yield 0, self._num_segments
            why = None if step.request is None else step.request.why_whole
            step.regions.append(RegionStep(Decision(False, why or "disabled")))
            return
        for stage in step.plan.stages:
            if stage.role is Role.RUNS:
                yield stage.start, stage.stop
            elif stage.role is Role.PROBED:
                yield from self._decide(step, stage)
            elif step.regions[-1].decision.hit:
                _reuse(step, step.plan.regions[len(step.regions) - 1])
            else:
                yield from self._compute(step, stage)

    def _decide(self, step: Step, stage: Stage) -> Iterator[tuple[int, int]]:
        """Run up to where a region's probe is complete; look, if it is the first; and decide."""
        if stage.region is None:
            self._looker.look(step, None)
            step.regions.append(RegionStep(Decision(False, EMPTY)))
            return
        region = step.plan.regions[stage.region]
        probe_in, dim = region.probe_in, region.probe_dim
        hidden_in = joined_at(step.values, probe_in, dim) if probe_in else None
        yield stage.start, stage.stop
        probed = self._probed(step, region, hidden_in)
        if stage.region == 0:
            self._looker.look(step, probed)
        step.regions.append(decide_region(step, probed, self._reader))
        yield stage.stop, stage.stop  # Samples that can't run alone decide as one.
        keep_probe(step.regions[-1], probed)

    def _probed(self, step: Step, region: Region, hidden_in: Tensor | None) -> Probed | None:
        probe = region.probe
        if probe is not None and probe.kind is ProbeKind.MODULATED_INPUT:
            return Probed(probe, self._modulated_input.read(step, probe.noise_filter), hidden_in)
        if probe is None or region.probe_out is None:
            return None
        return Probed(probe, tensor_at(step.values, region.probe_out), hidden_in)

    def _compute(self, step: Step, stage: Stage) -> Iterator[tuple[int, int]]:
        """Run a region, and hold what it did."""
        i, done, values = len(step.regions) - 1, step.regions[-1], step.values
        region, batch_dim, number = step.plan.regions[i], self._batch_dim, step.history.step
        bases, nearby = replay.bases_of(values, region), self._rerounded(step, region, stage)
        yield stage.start, stage.stop
        if done.cached is not None and step.plan.settings.observes_error:
            snapshots, done.error_sums = replay.judged_snapshots(
                values, region, done.cached, bases, number, batch_dim
            )
        else:
            snapshots = replay.snapshots_of(values, region, bases)
        if step.plan.settings.common.dry_run is not None:
            probe = None if done.probe is None else sampled(done.probe, batch_dim)
            recorded = record(values, region, bases, batch_dim)
            done.recorded = recorded._replace(probe=probe, noise=step.noise, rerounded=nearby)
        assert step.injected is not None
        held = replay.joined(region, done.cached, snapshots, number)
        done.cached = held._replace(probe=done.probe, injected=step.injected.of(region))

    def _rerounded(self, step: Step, region: Region, stage: Stage) -> tuple[Tensor, ...] | None:
        """Samples of a region that is computed twice, at one in so many steps of a dry run."""
        is_dry_run = step.plan.settings.common.dry_run is not None
        if step.rerun is None or not is_dry_run or step.history.step % REROUNDED_EVERY != 1:
            return None
        run = partial(step.rerun, start=stage.start, stop=stage.stop)
        return rerounded(step.values, region, run, self._batch_dim)


def _reuse(step: Step, region: Region) -> None:
    """Put the estimate of a region in its place."""
    done = step.regions[-1]
    assert done.cached is not None
    replay.reuse(step.values, region, done.cached, step.history.step)
    if done.probe is not None:
        done.cached = done.cached._replace(probe=done.probe)
