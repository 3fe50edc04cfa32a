"""The report's sentence on an image of so few steps that nothing of it was reused, or on steps that
were each taken for another request."""

from collections.abc import Sequence
from itertools import pairwise

from dit_cachegraph.freeze import last_images
from dit_cachegraph.step_log import StepReport

FEW_STEPS = 8
MAX_STRIDES_LEFT = 2.5  # The last strides of a shifted schedule are the longest.
NUM_TIMESTEPS = 1000.0
NUM_APART = 4
# Reasons of steps that were not to reuse.
NOT_ASKED = frozenset({"disabled", "dry run", "mask", "threshold 0"})

NOTHING_TO_SKIP = "empty region"


def why_nothing_gained(steps: Sequence[StepReport]) -> str | None:
    """A sentence where the last image was too short to reuse anything of it, if it was, or had no
    block that could be skipped."""
    if _are_apart(steps[-NUM_APART:]):
        return (
            f"each of the last {NUM_APART} calls was taken for a request of its own, of which none "
            "can reuse another's: if they are steps of one image, the graph with the blocks is "
            "given something beside its latents and timestep that is new at each, as where the "
            "code around the blocks breaks the graph (fullgraph=True shows where)"
        )
    images = last_images(steps)
    image = max(images, key=len, default=[])
    if {step.reason for step in image} == {NOTHING_TO_SKIP}:
        return (
            "the settings leave no block that could be skipped: lower Fn_compute_blocks or "
            "Bn_compute_blocks, or name fewer in non_prune_block_ids"
        )
    is_whole = _reaches_the_end(image) if len(image) > 1 else _are_single(steps)
    if not is_whole or any(step.hit for one in images for step in one):
        return None
    reasons = {step.reason for one in images for step in one}
    if reasons & NOT_ASKED:
        return None
    if len(image) == 1:
        return _why_single(steps)
    if reasons <= {"warmup", "new image"}:
        return (
            f"{len(image)} steps, all within warm-up: nothing to gain in so few, unless a shorter "
            "warm-up (max_warmup_steps) is good enough"
        )
    if len(image) <= FEW_STEPS:
        return f"{len(image)} steps, none reused: there is little to gain in so few"
    return None


def _why_single(steps: Sequence[StepReport]) -> str:
    """Distilled to one step, or called in a loop that leaves the timestep as it is."""
    first, *others = {step.timestep for step in steps}
    at = "" if others or first is None else f" (timestep {first:.4g})"
    return (
        f"each call was taken for an image of one step{at}: nothing to gain in so few. The steps "
        "of one image differ in their timesteps: to time a hit, move them as a sampler does, and "
        "the latents"
    )


def _are_apart(steps: Sequence[StepReport]) -> bool:
    """True for steps that each begin a request, while their timesteps, if any are seen, go on."""
    are_first = all(step.step == 0 and step.reason not in NOT_ASKED for step in steps)
    if len({step.request for step in steps}) < NUM_APART or not are_first:
        return False
    seen = [step.timestep for step in steps if step.timestep is not None]
    if not seen:
        return True
    strides = [after - before for before, after in pairwise(seen)]
    goes_one_way = min(strides, default=0.0) >= 0 or max(strides) <= 0
    return len(seen) == len(steps) and goes_one_way and seen[0] != seen[-1]


def _are_single(steps: Sequence[StepReport]) -> bool:
    """True for several images of one step each, one after another."""
    requests = [step.request for step in steps]
    return len(set(requests)) < len(requests) and all(step.step == 0 for step in steps)


def _reaches_the_end(image: Sequence[StepReport]) -> bool:
    """True where hardly anything is left of the noise range, as far as timesteps tell.

    Judged of steps that are over, with their mean stride beside the last, and so more is taken for
    whole than where state is freed by it: a wrong answer here is a sentence too many.
    """
    seen = [step.timestep for step in image if step.timestep is not None]
    if len(seen) < len(image):
        return True
    whole, last = seen[0] - seen[-1], seen[-2] - seen[-1]
    stride = max(abs(whole) / (len(seen) - 1), abs(last))
    end = 0.0 if whole > 0 else 1.0 if seen[-1] <= 1 else NUM_TIMESTEPS
    return abs(end - seen[-1]) <= MAX_STRIDES_LEFT * stride
