"""The end of a step: the only place where state changes. An exception before it leaves the state of
the step before."""

import math
import time
from collections.abc import Sequence

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.later import Later
from dit_cachegraph.plan import Trunk
from dit_cachegraph.policy.diffs import batch_diff, worst_sample
from dit_cachegraph.policy.rule import Decision, History, Need, StepResult
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.requests.track import Track
from dit_cachegraph.retention.lifetimes import begin_image, end_step
from dit_cachegraph.runtime.agree import note_agreed
from dit_cachegraph.runtime.cached_state import CachedState, InputOutput
from dit_cachegraph.runtime.reading import sums_of
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.step_log import Observed, StepReport


def commit(step: Step, trunk: Trunk, ranks: Ranks | None = None) -> StepReport:
    """Write down what a step did, and free what is not needed any more. `ranks` share the sample,
    None where there are no others."""
    table, known = step.model.requests, step.match.track
    error = _error(step, ranks)
    state = _state(step, trunk.signature)
    track = known if known is not None else Track(step.conditioning)
    if known is not None:
        table.set_aside.note_goes_on(step.conditioning)
    if track.is_complete:
        table.ends.unlearn(track.trajectory)
        track.is_complete = False
    _advance(track, step, error)
    table.held.note_call(track, step.call)
    track.lost, track.last_seconds = None, time.monotonic()
    table.held.hold(track, state)
    table.known = table.known.joined(step.match.step.known)
    if ranks is not None:
        note_agreed(track, step)
    if known is None:
        if step.reading.why_apart is not None:
            table.remove_all(step.conditioning)
        begin_image(table, track)
    _record(step, track)
    step.model.last_plan = step.plan
    report = _log(step, track, error, trunk.num_blocks)
    end_step(table, track, step.plan.settings.common)
    is_ended = step.request is not None and step.request.is_ended
    if is_ended or step.conditioning.is_over:
        table.end(step.conditioning)
    return report


def _advance(track: Track, step: Step, error: Later[Observed] | None) -> None:
    """The track stands where this step left it."""
    match, decisions = step.match, step.decisions
    rule, before, seen = step.plan.rule, step.history, step.regions[0].seen

    def history() -> History:
        known = None if error is None else error.value().error
        memory = rule.remember(before, StepResult(decisions, seen, known))
        return before.after(decisions, known, memory)

    track.history = Later.known(history()) if error is None else Later(history)
    track.trajectory, track.last_decisions = match.step.trajectory, decisions
    track.repeated_at, track.is_shared = match.repeated_at, match.is_shared
    track.is_unsure |= match.may_be_of_another_image


def _state(step: Step, signature: int) -> CachedState | None:
    """What later steps may use: after a hit most often what it used itself. Nothing of a step that
    is not cached."""
    plan, before = step.plan, step.state
    if not plan.settings.common.enabled or not plan.regions:
        return None
    regions = tuple([region.cached for region in step.regions])
    ends = _ends(step)
    if before is not None and before.is_of(plan, regions, ends):
        return before
    weights = step.weights.note() if before is None else before.weights
    return CachedState(signature, plan, weights, regions, ends)


def _error(step: Step, ranks: Ranks | None) -> Later[Observed] | None:
    """What reuse would have missed of the regions that computed, in one copy, which is waited for
    by the first to ask: the next step, or a report."""
    sums = [region.error_sums for region in step.regions if region.error_sums is not None]
    if not sums:
        return None
    total = sum(sums[1:], sums[0])
    copy = ops.HostCopy([total if ranks is None else ranks.summed(total)])
    rule = step.plan.rule.error_batch_rule

    def observed() -> Observed:
        missed = sums_of(*copy.read())
        return Observed(batch_diff(*missed, rule), worst_sample(*missed, rule))

    return Later(observed)


def _ends(step: Step) -> InputOutput | None:
    """The model's input and output, and how far they moved since the last computed step, where the
    rule asks for it. That is not read here, so that nothing waits for it."""
    before = None if step.state is None else step.state.ends
    if Need.OUTPUT not in step.plan.needs:
        return None
    if step.is_hit:
        return None if before is None else before._replace(moved=None)
    latents, output = _first_floats(step.latents), _first_floats(step.results)
    if latents is None or output is None:
        return None
    now = InputOutput(latents.clone(), output.clone(), None)
    if before is None or not now.has_shapes_of(before):
        return now
    moved = (ops.distance(before.input, latents, 0), ops.distance(before.output, output, 0))
    return now._replace(moved=moved)


def _first_floats(values: Sequence[object]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _log(step: Step, track: Track, error: Later[Observed] | None, num_blocks: int) -> StepReport:
    logs = (step.model.log, *(() if step.request is None else step.request.logs))
    report = _report(step)
    num_skipped, step.seconds = report.num_skipped, time.perf_counter() - step.began
    diffs = [d.diff for d in step.decisions if d.diff is not None and math.isfinite(d.diff)]
    smallest_diff, threshold = min(diffs, default=None), step.plan.rule.threshold
    for log in logs:
        log.add(report, error)
        log.tally.add(report.hit, num_blocks, num_skipped, step.seconds)
    track.tally.add(report.hit, num_blocks, num_skipped, step.seconds)
    track.tally.note_diff(smallest_diff, threshold)
    return report


def _record(step: Step, track: Track) -> None:
    recorded = step.regions[0].recorded
    if recorded is None:
        return
    if step.match.track is None or not track.recording:
        track.recording = []
        step.model.recordings.append(track.recording)
    track.recording.append(recorded)


def _report(step: Step) -> StepReport:
    clock, decisions = step.call.clock, step.decisions
    diffs = [d.diff for d in decisions if d.diff is not None]
    spans = zip(step.plan.spans, decisions, strict=False)
    return StepReport(
        step=step.history.step,
        timestep=clock[0] if clock else None,
        hit=step.is_hit,
        reason=_reason(decisions),
        diff=sum(diffs) / len(diffs) if diffs else None,
        request=step.conditioning.label,
        skipped=tuple([(span.start, span.stop) for span, decision in spans if decision.hit]),
        sample=_sample(step),
    )


def _sample(step: Step) -> int | None:
    """The sample of a batch that decided, of the first region that was looked at."""
    for region in step.regions:
        if region.decision.diff is not None and len(region.seen.moved) > 1:
            return step.plan.rule.sample_of(step.history, region.seen)
    return None


def _reason(decisions: Sequence[Decision]) -> str:
    """One sentence for all regions of a step."""
    first = decisions[0].reason
    if len(decisions) == 1 or all(decision.reason == first for decision in decisions):
        return first
    num_hits = sum(decision.hit for decision in decisions)
    return f"{first}; {num_hits} of {len(decisions)} regions reused"
