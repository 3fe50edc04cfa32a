"""The end of a step: the only place where state changes. An exception before it leaves the state of
the step before."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import Trunk
from dit_cachegraph.policy.diffs import batch_diff
from dit_cachegraph.policy.rule import Decision, History, Need, Observation, StepResult
from dit_cachegraph.runtime.cache_state import Branch, Ends, Image, Kept, Recorded, RegionKept
from dit_cachegraph.runtime.call_note import CallNote
from dit_cachegraph.runtime.find_image import Match
from dit_cachegraph.runtime.life import begin_image, end_step
from dit_cachegraph.runtime.models import ModelState
from dit_cachegraph.runtime.request import Request
from dit_cachegraph.runtime.sight import Sight
from dit_cachegraph.runtime.step_log import Step
from dit_cachegraph.runtime.step_plan import StepPlan
from dit_cachegraph.runtime.step_reader import read_sums
from dit_cachegraph.runtime.weights import Weights


class Now(NamedTuple):
    """Whose step it is and by which settings it goes, read once at its start. `guess` is the image
    that it most likely goes on with; `partner` is known to be of the same request; `note` has the
    user's tensors where this fragment of the graph does not get them; `weights` are the trunk's."""

    request: Request | None
    model: ModelState
    branch: Branch
    plan: StepPlan
    guess: Image | None
    partner: Image | None
    note: CallNote | None
    weights: Weights


class Done(NamedTuple):
    """What was decided on one region, seen of it and done. `kept` is first what the step may use,
    and in the end what later steps may; `error_sums` what an estimate would have missed, [B, 2];
    `recorded` is for a dry run."""

    decision: Decision
    seen: Observation
    kept: RegionKept | None
    probe: Tensor | None
    error_sums: Tensor | None = None
    recorded: Recorded | None = None


class Outcome(NamedTuple):
    """What a step saw and did, region by region. `before` is what it could use."""

    sight: Sight
    match: Match
    history: History
    done: tuple[Done, ...]
    before: Kept | None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple([done.decision for done in self.done])

    @property
    def is_hit(self) -> bool:
        return any(done.decision.hit for done in self.done)


class Passed(NamedTuple):
    """What the model was given as latents, and what it returns."""

    latents: Sequence[object]
    results: Sequence[object]


def history_of(match: Match) -> History:
    """What the rule sees."""
    if match.moment.restarts_at is not None:
        return History(step=match.moment.restarts_at)
    return match.image.history if match.image is not None else History()


def commit_step(now: Now, outcome: Outcome, trunk: Trunk, passed: Passed | None = None) -> None:
    """Write down what a step did, and free what is not needed any more. `passed` is None where
    nothing is to be kept."""
    model, branch, (sight, match, history, done, _) = now.model, now.branch, outcome
    error = _error(outcome)
    ends = None if passed is None else _ends(now, outcome, passed)
    image = match.image if match.image is not None else Image(branch)
    if match.image is not None and branch.num_uses == 1:
        model.branches.note_rebuilt(branch)
    if image.is_complete:
        model.schedules.unlearn(image)
        image.is_complete = False
    image.has_successor = False
    image.trajectory = match.moment.trajectory
    result = StepResult(outcome.decisions, done[0].seen, error)
    memory = now.plan.rule.remember(history, result)
    image.history = history.after(result.decisions, error)._replace(memory=memory)
    image.last_decisions = result.decisions
    image.sketch, image.signature, image.passes = sight.sketch, sight.signature, match.passes
    image.latents, image.latents_versions = sight.latents, sight.latents_versions
    if passed is None or not now.plan.regions:
        image.kept = None
    else:
        image.kept = _kept(now, outcome, trunk.signature, ends)
    model.known = match.moment.known
    if match.image is None:
        begin_image(model.branches, model.schedules, image)
    _record(model, image, done[0].recorded, is_first=match.image is None)
    model.log.add(_step(now, outcome, error), trunk.num_blocks)
    _tally(now, image, outcome, trunk.num_blocks)
    common = now.plan.settings.common
    end_step(
        model.branches, model.schedules, image, common.num_inference_steps, common.max_state_bytes
    )


def _kept(now: Now, outcome: Outcome, signature: int, ends: Ends | None) -> Kept:
    regions = tuple([done.kept for done in outcome.done])
    weights = now.weights.note() if outcome.before is None else outcome.before.weights
    return Kept(signature, now.plan.spans, now.plan.predictors, weights, regions, ends)


def _error(outcome: Outcome) -> float | None:
    """What reuse would have missed of the regions that computed, in one copy."""
    sums = [done.error_sums for done in outcome.done if done.error_sums is not None]
    if not sums:
        return None
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    return batch_diff(*read_sums(total), "max")


def _ends(now: Now, outcome: Outcome, passed: Passed) -> Ends | None:
    """The model's input and output, and how far they moved since the last computed step, where the
    rule asks for it. That is not read here, so that nothing waits for it."""
    before = None if outcome.before is None else outcome.before.ends
    if Need.OUTPUT not in now.plan.rule.needs:
        return None
    if outcome.is_hit:
        return None if before is None else before._replace(moved=None)
    latents, output = _first_floats(passed.latents), _first_floats(passed.results)
    if latents is None or output is None:
        return None
    moved = None
    if before is not None and (before.input.shape, before.output.shape) == (
        latents.shape,
        output.shape,
    ):
        moved = (ops.distance(before.input, latents, 0), ops.distance(before.output, output, 0))
    return Ends(latents.clone(), output.clone(), moved)


def _first_floats(values: Sequence[object]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _record(model: ModelState, image: Image, recorded: Recorded | None, *, is_first: bool) -> None:
    if recorded is None:
        return
    if is_first or not image.recording:
        image.recording = []
        model.recordings.append(image.recording)
    image.recording.append(recorded)


def _step(now: Now, outcome: Outcome, error: float | None) -> Step:
    clock, decisions = outcome.sight.clock, outcome.decisions
    diffs = [d.diff for d in decisions if d.diff is not None]
    spans = zip(now.plan.spans, decisions, strict=False)
    return Step(
        step=outcome.history.step,
        timestep=clock[0] if clock else None,
        hit=outcome.is_hit,
        reason=_reason(decisions),
        diff=sum(diffs) / len(diffs) if diffs else None,
        request=now.branch.label,
        skipped=tuple([(span.start, span.stop) for span, decision in spans if decision.hit]),
        observed_error=error,
    )


def _reason(decisions: Sequence[Decision]) -> str:
    """One sentence for all regions of a step."""
    first = decisions[0].reason
    if len(decisions) == 1 or all(decision.reason == first for decision in decisions):
        return first
    num_hits = sum(decision.hit for decision in decisions)
    return f"{first}; {num_hits} of {len(decisions)} regions reused"


def _tally(now: Now, image: Image, outcome: Outcome, num_blocks: int) -> None:
    spans = zip(now.plan.spans, outcome.decisions, strict=False)
    num_skipped = sum(span.stop - span.start for span, decision in spans if decision.hit)
    tally = image.tally
    tally.num_hits += outcome.is_hit
    tally.num_computed += not outcome.is_hit
    tally.num_blocks += num_blocks
    tally.num_blocks_run += num_blocks - num_skipped
    tally.threshold = now.plan.rule.threshold
    for decision in outcome.decisions:
        if decision.diff is not None and math.isfinite(decision.diff):
            known = tally.smallest_diff
            tally.smallest_diff = decision.diff if known is None else min(decision.diff, known)
