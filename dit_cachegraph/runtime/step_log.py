"""What a model did, step by step: totals for ever, single steps for the last thousand."""

from collections import deque
from dataclasses import dataclass

MAX_STEPS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class StepReport:
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
        self.steps: deque[StepReport] = deque(maxlen=MAX_STEPS_KEPT)
        self.num_hits = 0
        self.num_computed = 0
        self.num_blocks = 0
        self.num_blocks_run = 0

    def add(self, step: StepReport, num_blocks: int) -> None:
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
