"""What a model did, step by step: totals for ever, single steps for the last thousand."""

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from dit_cachegraph.later import Later
from dit_cachegraph.tally import Tally

MAX_STEPS_KEPT = 1000


class Observed(NamedTuple):
    """What a reuse would have missed as a share of the streams, and the sample of a batch that
    would have missed most, where the batch goes by that."""

    error: float
    sample: int | None = None


@dataclass(frozen=True, slots=True)
class StepReport:
    """One call of the transformer. `diff` is the mean over its regions, None where nothing was
    compared; `timestep` is None where it was not read. `skipped` are the blocks `start..stop-1` of
    each region that was reused; `observed_error` is what reuse would have missed of those that
    computed, as a share of the streams, where that was measured. `sample` is the one of a batch by
    which all of it was decided, the first region where there are several, or whose error paces the
    steps to come; None where each sample decides alone, or where all count."""

    step: int
    timestep: float | None
    hit: bool
    reason: str
    diff: float | None
    request: str
    skipped: tuple[tuple[int, int], ...] = ()
    observed_error: float | None = None
    sample: int | None = None

    @property
    def num_skipped(self) -> int:
        """The blocks that it skipped."""
        return sum(stop - start for start, stop in self.skipped)


class StepLog:
    """Totals and the last steps of one model."""

    def __init__(self) -> None:
        self._steps: deque[tuple[StepReport, Later[Observed] | None]] = deque(maxlen=MAX_STEPS_KEPT)
        self.tally = Tally()

    def add(self, report: StepReport, error: Later[Observed] | None = None) -> None:
        """A step, with the error that was observed at it, which may still be on the device."""
        self._steps.append((report, error))

    @property
    def steps(self) -> list[StepReport]:
        """The last steps, the newest last, with what is still to come from the device."""
        return [
            report if error is None else _with(report, error.value())
            for report, error in list(self._steps)
        ]

    def absorb(self, other: "StepLog") -> None:
        """Count what another log of the same model saw as well."""
        self._steps.extend(other._steps)
        self.tally.absorb(other.tally)


def _with(report: StepReport, observed: Observed) -> StepReport:
    sample = observed.sample if report.sample is None else report.sample
    return replace(report, observed_error=observed.error, sample=sample)
