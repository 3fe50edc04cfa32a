"""The end of a step: the only place where state changes. An exception before it leaves the state of
the step before."""

import math
from typing import NamedTuple

from dit_cachegraph.config import Settings
from dit_cachegraph.plan import Region
from dit_cachegraph.policy.rule import Decision, History
from dit_cachegraph.runtime.cache_state import Branch, Image, Kept
from dit_cachegraph.runtime.call_note import CallNote
from dit_cachegraph.runtime.find_image import Match, Sight
from dit_cachegraph.runtime.life import begin_image, end_step
from dit_cachegraph.runtime.models import ModelState
from dit_cachegraph.runtime.request import Request
from dit_cachegraph.runtime.step_log import Step


class Now(NamedTuple):
    """Whose step it is and by which settings it goes, read once at its start. `guess` is the image
    that it most likely goes on with; `partner` is known to be of the same request; `note` has the
    user's tensors where this fragment of the graph does not get them."""

    request: Request | None
    model: ModelState
    branch: Branch
    settings: Settings
    region: Region
    guess: Image | None
    partner: Image | None
    note: CallNote | None


class Outcome(NamedTuple):
    """What a step saw and did. `kept` is what later steps may reuse."""

    sight: Sight
    match: Match
    decision: Decision
    kept: Kept | None


def history_of(match: Match) -> History:
    """What the rule sees."""
    if match.moment.restarts_at is not None:
        return History(step=match.moment.restarts_at)
    return match.image.history if match.image is not None else History()


def commit_step(now: Now, outcome: Outcome, num_blocks: int) -> None:
    """Write down what a step did, and free what is not needed any more."""
    model, branch, (sight, match, decision, kept) = now.model, now.branch, outcome
    history = history_of(match)
    image = match.image if match.image is not None else Image(branch)
    if match.image is not None and branch.num_uses == 1:
        model.branches.note_rebuilt(branch)
    if image.is_complete:
        model.schedules.unlearn(image)
        image.is_complete = False
    image.has_successor = False
    image.trajectory = match.moment.trajectory
    image.history = history.after(decision)
    image.sketch, image.latents, image.signature = sight.sketch, sight.latents, sight.signature
    if not decision.hit:
        image.kept = None if now.region.is_empty else kept
    model.known = match.moment.known
    if match.image is None:
        begin_image(model.branches, model.schedules, image)
    model.log.add(_step(history.step, sight, decision, branch))
    _tally(now, image, decision, num_blocks)
    common = now.settings.common
    end_step(
        model.branches, model.schedules, image, common.num_inference_steps, common.max_state_bytes
    )


def _step(index: int, sight: Sight, decision: Decision, branch: Branch) -> Step:
    timestep = sight.clock[0] if sight.clock else None
    return Step(index, timestep, decision.hit, decision.reason, decision.diff, branch.label)


def _tally(now: Now, image: Image, decision: Decision, num_blocks: int) -> None:
    skipped = now.region.stop - now.region.start if decision.hit else 0
    tally = image.tally
    tally.num_hits += decision.hit
    tally.num_computed += not decision.hit
    tally.num_blocks += num_blocks
    tally.num_blocks_run += num_blocks - skipped
    tally.threshold = now.settings.rule.threshold
    if decision.diff is not None and math.isfinite(decision.diff):
        known = tally.smallest_diff
        tally.smallest_diff = decision.diff if known is None else min(decision.diff, known)
