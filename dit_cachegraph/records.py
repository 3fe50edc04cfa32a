"""What whoever observes is told: a record a step, and one a request that ends."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from dit_cachegraph.step_log import StepLog, StepReport


@dataclass(frozen=True, slots=True)
class RequestReport:
    """What was done under one handle: its own steps (the last thousand), and counts of all.
    `seconds` are those of its steps, by the host's clock."""

    key: Hashable
    steps: tuple[StepReport, ...]
    num_hits: int
    num_computed: int
    num_blocks: int
    num_blocks_run: int
    seconds: float

    @property
    def share_of_work(self) -> float | None:
        """The blocks that ran, as a share of those that would have without a cache."""
        return self.num_blocks_run / self.num_blocks if self.num_blocks else None


def report_of_request(key: Hashable, log: StepLog) -> RequestReport:
    """The report of the request whose steps are in `log`."""
    tally = log.tally
    return RequestReport(
        key=key,
        steps=tuple(log.steps),
        num_hits=tally.num_hits,
        num_computed=tally.num_computed,
        num_blocks=tally.num_blocks,
        num_blocks_run=tally.num_blocks_run,
        seconds=tally.seconds,
    )


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One call of a transformer, at its end. `model` is the class that was called; of `num_blocks`
    blocks `num_blocks_run` ran; `state_nbytes` is what is held for the model after it; `seconds`
    are the host's: where the device is asynchronous it may still be at work. An error that was
    observed isn't waited for, and is in `summary` alone."""

    model: str
    step: StepReport
    num_blocks: int
    num_blocks_run: int
    state_nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request whose handle was ended: what was done until then, the bytes that were freed, and
    the seconds since the handle was made."""

    report: RequestReport
    freed_nbytes: int
    seconds: float


Record: TypeAlias = StepRecord | RequestRecord
