"""Draws and compares, and counts what that takes."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dit_cachegraph.api import configure, reset, summary
from dit_cachegraph.calibration.pictures import Array, as_array, psnr_db, ssim
from dit_cachegraph.calibration.points import Point
from dit_cachegraph.calibration.rival import FewerSteps, RunWithSteps
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.freeze import settings_as_config
from dit_cachegraph.report import Report

log = logging.getLogger("dit_cachegraph")
Settings = Mapping[str, object]
Run = Callable[[object], object]

MAX_RUNS = 40
LARGEST_PSNR_DB = 100.0
# Of a picture with values that are no finite numbers: behind every other, and in order with them.
WORST_PSNR_DB, WORST_SSIM = -LARGEST_PSNR_DB, -1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One picture under one setting: the share of block work that ran, and how near it came."""

    share: float
    psnr_db: float
    ssim: float | None


@dataclass(slots=True)
class Bench:
    """`target` is drawn by `run`. What was drawn once is not drawn again."""

    target: object
    run: Run
    measures_ssim: bool
    references: dict[object, Array] = field(default_factory=dict)
    known: dict[tuple[str, object], Measured] = field(default_factory=dict)
    num_runs: int = 0
    uncached_seconds: list[float] = field(default_factory=list)
    spent_seconds: float = 0.0

    def draw_uncached(self, inputs: Sequence[object], settings: Settings) -> None:
        """Draw what the others are compared with.

        Raises:
            InvalidConfig: a value of it is no finite number.
        """
        configure(self.target, **settings)
        for one in inputs:
            drawn, taken = self._timed(one)
            if not np.isfinite(drawn).all():
                raise InvalidConfig(
                    f"the uncached picture of {one!r} has values that are no finite numbers, so "
                    "nothing can be compared with it: see that the model draws right without cache"
                )
            self.references[one] = drawn
            self.uncached_seconds.append(taken)

    def try_out(self, inputs: Sequence[object], settings: Settings) -> Point:
        """The mean over the inputs under these settings, all options of which are in the point."""
        whole = settings_as_config(resolve(settings))
        measured = [self._measure(one, whole) for one in inputs]
        ssims = [one.ssim for one in measured if one.ssim is not None]
        point = Point(
            share=sum(one.share for one in measured) / len(measured),
            psnr_db=sum(one.psnr_db for one in measured) / len(measured),
            ssim=sum(ssims) / len(ssims) if ssims else None,
            num_inputs=len(inputs),
            settings=whole,
        )
        log.info("calibrate: %d of %d runs: %s with %s", self.num_runs, MAX_RUNS, point, settings)
        return point

    def try_fewer_steps(
        self, inputs: Sequence[object], run: RunWithSteps, num_steps: int, of_steps: int
    ) -> FewerSteps:
        """The mean over the inputs, whose uncached pictures are known, of `num_steps` uncached
        steps."""
        configure(self.target, enabled=False)
        measured = []
        for one in inputs:
            drawn, taken = self._timed(one, lambda one: run(one, num_steps))
            self.spent_seconds += taken
            measured.append(self._compare(one, drawn, num_steps / of_steps))
        ssims = [one.ssim for one in measured if one.ssim is not None]
        return FewerSteps(
            num_steps,
            of_steps,
            psnr_db=sum(one.psnr_db for one in measured) / len(measured),
            ssim=sum(ssims) / len(ssims) if ssims else None,
        )

    def num_new(self, inputs: Sequence[object], settings: Settings) -> int:
        """How many runs `try_out` would take."""
        whole = str(settings_as_config(resolve(settings)))
        return sum((whole, one) not in self.known for one in inputs)

    def has_room(self, num_runs: int, num_kept_back: int) -> bool:
        """True while so many runs more, and those that are kept back, are within the limit."""
        more = num_runs + num_kept_back
        return self.num_runs + more <= MAX_RUNS and self.run_cost + more <= MAX_RUNS

    @property
    def run_cost(self) -> float:
        """The time of all runs so far, in uncached runs. The first of these compiles, which is
        left out where there are others."""
        seconds = self.uncached_seconds[1:] or self.uncached_seconds
        mean = sum(seconds) / len(seconds)
        return len(self.uncached_seconds) + self.spent_seconds / mean

    def _measure(self, one: object, whole: Settings) -> Measured:
        key = (str(whole), one)
        if key not in self.known:
            configure(self.target, **whole, enabled=True)
            reset(self.target)
            before = summary(self.target)
            drawn, taken = self._timed(one)
            self.spent_seconds += taken
            share = _share_run(before, summary(self.target))
            self.known[key] = self._compare(one, drawn, share)
        return self.known[key]

    def _compare(self, one: object, drawn: Array, share: float) -> Measured:
        reference = self.references[one]
        if not np.isfinite(drawn).all():
            return Measured(share, WORST_PSNR_DB, WORST_SSIM if self.measures_ssim else None)
        similarity = ssim(drawn, reference) if self.measures_ssim else None
        decibels = min(max(psnr_db(drawn, reference), WORST_PSNR_DB), LARGEST_PSNR_DB)
        return Measured(share, decibels, similarity)

    def _timed(self, one: object, run: Run | None = None) -> tuple[Array, float]:
        started = time.perf_counter()
        drawn = as_array((run or self.run)(one))
        self.num_runs += 1
        return drawn, time.perf_counter() - started


def _share_run(before: Report, after: Report) -> float:
    """The share of the block work between two reports.

    Raises:
        InvalidConfig: there was none between them.
    """
    num_blocks = after.num_blocks - before.num_blocks
    if num_blocks == 0:
        raise InvalidConfig(
            "a run of calibrate returned without a call of the model that went through the cache: "
            "it has to draw anew each time that it is called"
        )
    return (after.num_blocks_run - before.num_blocks_run) / num_blocks
