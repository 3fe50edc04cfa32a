"""What a model did, step by step: totals for ever, single steps for the last thousand."""

import logging
from collections import deque
from dataclasses import dataclass

from dit_cachegraph.runtime.cache_state import Image, ImageTally

log = logging.getLogger("dit_cachegraph")
MAX_STEPS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the transformer. `diff` is the mean over its regions, None where nothing was
    compared; `timestep` is None where it was not read. `skipped` are the blocks `start..stop-1` of
    each region that was reused; `observed_error` is what reuse would have missed of those that
    computed, as a share of the streams, where that was measured."""

    step: int
    timestep: float | None
    hit: bool
    reason: str
    diff: float | None
    request: str
    skipped: tuple[tuple[int, int], ...] = ()
    observed_error: float | None = None


class StepLog:
    """Totals and the last steps of one model."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque(maxlen=MAX_STEPS_KEPT)
        self.num_hits = 0
        self.num_computed = 0
        self.num_blocks = 0
        self.num_blocks_run = 0

    def add(self, step: Step, num_blocks: int) -> None:
        """Count a step of a trunk of so many blocks."""
        self.steps.append(step)
        self.num_blocks += num_blocks
        self.num_blocks_run += num_blocks - sum(stop - start for start, stop in step.skipped)
        self.num_hits += step.hit
        self.num_computed += not step.hit

    def absorb(self, other: "StepLog") -> None:
        """Count what another log of the same model saw as well."""
        self.steps.extend(other.steps)
        self.num_hits += other.num_hits
        self.num_computed += other.num_computed
        self.num_blocks += other.num_blocks
        self.num_blocks_run += other.num_blocks_run


def log_image(image: Image) -> None:
    """The line that tells a user, without being asked, whether the cache did anything: at the last
    step of an image where that is known, else when its state goes, or the next image begins."""
    tally = image.tally
    num_steps = tally.num_hits + tally.num_computed
    if num_steps == 0:
        return
    share = tally.num_blocks_run / max(tally.num_blocks, 1)
    image.tally = ImageTally()
    text = f"image of request {image.branch.label}: {tally.num_hits} of {num_steps} steps reused, "
    text += f"{share:.0%} of the block work run"
    if tally.num_hits == 0 and tally.smallest_diff is not None and tally.threshold is not None:
        text += f"; smallest diff {tally.smallest_diff:.3g}, threshold {tally.threshold:g}"
    log.info("%s", text)
