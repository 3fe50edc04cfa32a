"""`calibrate`: record uncached runs, search, check on pictures that the search has not seen.

record    the seeds uncached, in full: pictures, samples of each step, the time of a run
propose   families of settings, each with one number from gentle to bold
try       real runs: bisection in each family for the boldest that holds the target
check     the best of all on the holdout
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from dit_cachegraph.api import configure, reset, summary
from dit_cachegraph.calibration.find_mask import find_masks, reuse_costs
from dit_cachegraph.calibration.pictures import Array, as_array, psnr_db
from dit_cachegraph.calibration.result import CalibratedConfig, Point
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.taylorseer import TaylorSeerCalibratorConfig
from dit_cachegraph.report import Report
from dit_cachegraph.runtime.cache_state import Recorded
from dit_cachegraph.runtime.models import REGISTRY
from dit_cachegraph.targets import modules_in

log = logging.getLogger("dit_cachegraph")
Settings = Mapping[str, object]
Run = Callable[[object], object]

MAX_RUN_COST = 40.0
FORECAST = MappingProxyType({"predictor": "taylorseer", "taylorseer_order": 1})


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for: at least this quality, or at most this share of the block work."""

    psnr_db: float | None
    compute_budget: float | None

    def holds(self, point: Point) -> bool:
        if self.psnr_db is not None:
            return point.psnr_db >= self.psnr_db
        assert self.compute_budget is not None
        return point.share <= self.compute_budget

    def best(self, points: Sequence[Point]) -> Point:
        """Of those that hold the cheapest, or the best; the nearest where none does."""
        good = [point for point in points if self.holds(point)]
        if self.psnr_db is not None:
            cheapest = min(good, key=lambda p: p.share, default=None)
            return cheapest or max(points, key=lambda p: p.psnr_db)
        finest = max(good, key=lambda p: p.psnr_db, default=None)
        return finest or min(points, key=lambda p: p.share)

    def __str__(self) -> str:
        if self.psnr_db is not None:
            return f"at least {self.psnr_db:g} dB"
        return f"at most {self.compute_budget:.0%} of the block work"


@dataclass(slots=True)
class _Bench:
    """Draws and compares; `spent` counts time in uncached runs."""

    target: object
    run: Run
    references: dict[object, Array] = field(default_factory=dict)
    seconds: float = 0.0
    spent_seconds: float = 0.0

    def draw_uncached(self, inputs: Sequence[object], settings: Settings) -> None:
        configure(self.target, **settings)
        for one in inputs:
            started = time.perf_counter()
            self.references[one] = as_array(self.run(one))
            taken = time.perf_counter() - started
            self.spent_seconds += taken
            # The first run compiles.
            self.seconds = taken if not self.seconds else min(self.seconds, taken)

    def try_out(self, inputs: Sequence[object], settings: Settings) -> Point:
        configure(self.target, **settings)
        qualities, shares = [], []
        for one in inputs:
            reset(self.target)
            started = time.perf_counter()
            before = summary(self.target)
            drawn = as_array(self.run(one))
            self.spent_seconds += time.perf_counter() - started
            shares.append(_share_run(before, summary(self.target)))
            qualities.append(min(psnr_db(drawn, self.references[one]), 100.0))
        point = Point(sum(shares) / len(shares), sum(qualities) / len(qualities), dict(settings))
        log.info("calibrate: %s with %s", point, dict(settings))
        return point

    @property
    def run_cost(self) -> float:
        return self.spent_seconds / self.seconds


def calibrate(
    target: object,
    run: Run,
    *,
    target_psnr: float | None = None,
    compute_budget: float | None = None,
    inputs: Sequence[object] = (0, 1),
    holdout: Sequence[object] = (100, 101),
) -> CalibratedConfig:
    """Settings that hold a quality or a budget on this model, on pictures that `run` draws.

    `run(input)` draws once, of a seed or a prompt, and returns pictures; `inputs` are those to
    search on, `holdout` those to check on. `target_psnr` is in dB against the uncached pictures,
    `compute_budget` a share of the block work from 0 to 1. Takes at most 40 times the time of an
    uncached run. The best is configured on `target` when it returns.

    Raises:
        InvalidConfig: not just one target is given, or nothing of `target` is cached.
    """
    goal = _goal(target_psnr, compute_budget)
    bench = _Bench(target, run)
    recordings = _record(bench, inputs)
    points: list[Point] = []
    budget = MAX_RUN_COST - 2.0 * len(holdout)
    for family in _families(recordings):
        points += _bisect(bench, goal, family, inputs, budget)
    best = goal.best(points)
    bench.draw_uncached(holdout, {"enabled": False})
    checked = bench.try_out(holdout, {**best.settings, "enabled": True})
    settings = dict(best.settings)
    configure(target, **settings, enabled=True)
    return CalibratedConfig(
        best, Point(checked.share, checked.psnr_db, settings), points, str(goal),
        is_reached=goal.holds(checked), run_cost=bench.run_cost,
    )  # fmt: skip


def _goal(target_psnr: float | None, compute_budget: float | None) -> Goal:
    if (target_psnr is None) == (compute_budget is None):
        raise InvalidConfig("calibrate takes one of target_psnr and compute_budget")
    return Goal(target_psnr, compute_budget)


def _record(bench: _Bench, inputs: Sequence[object]) -> list[list[Recorded]]:
    """Uncached runs with a sample of every step of them."""
    states = REGISTRY.states_of(modules_in(bench.target))
    for state in states:
        state.recordings.clear()
    bench.draw_uncached(inputs, {"rule": "fixed", "compute_mask": (1,), "dry_run": ()})
    configure(bench.target, dry_run=None)
    recordings = [list(recording) for state in states for recording in state.recordings]
    if not recordings:
        raise InvalidConfig("nothing of this model is cached: see `summary` for the reason")
    longest = max(map(len, recordings))
    return [recording for recording in recordings if len(recording) == longest]


def _families(recordings: Sequence[Sequence[Recorded]]) -> Iterator[list[dict[str, object]]]:
    """Settings from gentle to bold, one family after the other."""
    tolerances = [0.01 * 1.4**i for i in range(14)]
    yield [{"rule": "error_control", "error_tolerance": t, **FORECAST} for t in tolerances]
    masks = find_masks(reuse_costs(recordings, TaylorSeerCalibratorConfig(taylorseer_order=1)))
    yield [
        {"rule": "fixed", "compute_mask": masks[count], "fixed_region": None, **FORECAST}
        for count in sorted(masks, reverse=True)
    ]
    dbcache = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 4}
    for predictor in (FORECAST, {"predictor": "replay"}):
        yield [
            {**dbcache, "residual_diff_threshold": 0.02 * 1.35**i, **predictor} for i in range(14)
        ]


def _bisect(
    bench: _Bench,
    goal: Goal,
    family: Sequence[Settings],
    inputs: Sequence[object],
    budget: float,
) -> Iterator[Point]:
    """Try a few of a family, towards the border of what holds the goal: the boldest of a quality,
    the gentlest of a budget."""
    low, high = 0, len(family) - 1
    while low <= high and bench.run_cost + len(inputs) < budget:
        middle = (low + high) // 2
        point = bench.try_out(inputs, family[middle])
        yield point
        if goal.holds(point) == (goal.psnr_db is not None):
            low = middle + 1
        else:
            high = middle - 1


def _share_run(before: Report, after: Report) -> float:
    """The share of the block work between two reports."""
    return (after.num_blocks_run - before.num_blocks_run) / (after.num_blocks - before.num_blocks)
