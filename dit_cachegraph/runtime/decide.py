"""Reuse or compute, for one region of a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Effect
from dit_cachegraph.policy.rule import Decision, Need, Observation, Sums
from dit_cachegraph.runtime.cached_state import CachedRegion
from dit_cachegraph.runtime.reading import Probed, StepReader
from dit_cachegraph.runtime.step import RegionStep, Step
from dit_cachegraph.segments.slots import Values, tensor_at

EMPTY = "empty region"


def decide_region(step: Step, probed: Probed | None, reader: StepReader) -> RegionStep:
    """Decide on the next region, with what the step may use of it."""
    i, rule, earlier, noise = len(step.regions), step.plan.rule, step.decisions, step.noise
    cached, why_nothing = _usable(step, earlier, probed)
    reason = why_compute(step) or rule.why_compute(step.history, earlier, noise)
    reason = reason or why_nothing
    sums = step.reading.sums
    if i > 0 and reason is None and Need.DIFF in step.plan.needs:
        sums = _further_sums(sums, cached, probed, reader)
    companions, change = step.companions(i), step.reading.change
    seen = Observation(sums.moved, sums.size, earlier, companions, change, noise)
    decision = Decision(False, reason) if reason else rule.decide(step.history, seen)
    return RegionStep(decision, seen, cached)


def keep_probe(decided: RegionStep, probed: Probed | None) -> None:
    """Keep what the next step is compared with."""
    if probed is not None and (not decided.decision.hit or probed.probe.is_of_last_step):
        factor = probed.probe.downsample_factor
        decided.probe = ops.probe_value(probed.hidden, probed.hidden_in, factor)


def _fits(values: Values, effect: Effect, snapshot: Tensor) -> bool:
    """True if what is kept of an effect can be added to what enters the region now."""
    shapes = [tensor_at(values, slot).shape for slot in effect.live_ins]
    if len(shapes) > 1:
        sizes = list(shapes[0])
        sizes[effect.dim] = sum(shape[effect.dim] for shape in shapes)
        shapes = [torch.Size(sizes)]
    return shapes in ([], [snapshot.shape])


def why_compute(step: Step) -> str | None:
    """Why a step computes whatever the rule says."""
    common, doubt = step.plan.settings.common, step.match.step.doubt
    if common.dry_run is not None:
        return "dry run"
    if doubt is not None:
        return doubt
    bound, largest = common.max_observed_error, step.history.largest_error
    if bound is not None and largest > bound:
        return f"observed error {largest:.3g} > {bound:g}"
    return None


def _further_sums(
    sums: Sums, cached: CachedRegion | None, probed: Probed | None, reader: StepReader
) -> Sums:
    if cached is None or cached.probe is None:
        return sums
    assert probed is not None, "what is kept of a probe is compared with one"
    return reader.read_region(probed.against(cached.probe))


def _usable(
    step: Step, earlier: Sequence[Decision], probed: Probed | None
) -> tuple[CachedRegion | None, str | None]:
    """What is held of the region after these, if this step can use it; else why not."""
    i = len(earlier)
    cached = None if step.state is None else step.state.regions[i]
    if cached is None:
        return None, step.why_nothing or "nothing kept"
    if step.plan.rule.forgets(step.history, earlier):
        return None, "begins anew"
    if probed is not None:
        if cached.probe is None:
            return None, "nothing kept to compare with"
        is_same = probed.fits(cached.probe)
    else:
        effects = step.plan.regions[i].effects
        is_same = all(
            _fits(step.values, effect, snapshots[-1])
            for effect, snapshots in zip(effects, cached.snapshots, strict=True)
        )
    return (cached, None) if is_same else (None, "new shape")
