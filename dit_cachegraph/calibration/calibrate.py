"""`calibrate`: record uncached runs, search, check on pictures that the search has not seen.

record    the inputs uncached, in full: pictures, samples of each step, the time of a run
propose   families of settings, each with one number from gentle to bold
try       real runs: bisection in each family for the boldest that holds the target
check     the best of all on the holdout, and beside it fewer steps of no more work
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

from dit_cachegraph.api import configure, summary
from dit_cachegraph.calibration.bench import Bench, Run
from dit_cachegraph.calibration.families import Proposals
from dit_cachegraph.calibration.goal import Goal
from dit_cachegraph.calibration.inputs import Inputs, check_inputs
from dit_cachegraph.calibration.result import CalibratedConfig
from dit_cachegraph.calibration.rival import RunWithSteps, num_steps_for
from dit_cachegraph.calibration.rounding import below_noise, rounding_noise
from dit_cachegraph.calibration.search import Search
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.targets import modules_in

log = logging.getLogger("dit_cachegraph")

UNCACHED = MappingProxyType(
    {"rule": "fixed", "compute_mask": (1,), "fixed_region": None, "predictor": "replay"}
)


def calibrate(
    target: object,
    run: Run,
    *,
    target_psnr: float | None = None,
    target_ssim: float | None = None,
    compute_budget: float | None = None,
    inputs: Inputs = (0, 1),
    holdout: Inputs = (100, 101),
    run_with_steps: RunWithSteps | None = None,
) -> CalibratedConfig:
    """Settings that hold a quality or a budget on this model, on pictures that `run` draws.

    `run(input)` draws once, of a seed or a prompt, and returns pictures; `inputs` are those to
    search on, `holdout` those to check on. `target_psnr` is in dB against the uncached pictures,
    `target_ssim` an SSIM against them, `compute_budget` a share of the block work from 0 to 1.
    `run_with_steps(input, num_steps)` draws the same in another number of steps: with it the result
    says what fewer steps give at no more work, and whether they win.
    Draws at most 40 times, uncached runs and those of the holdout among them. The best is
    configured on `target` when it returns; where it raises, what was configured before. Progress
    goes to the log, a line a try.

    Raises:
        InvalidConfig: not just one goal is given, nothing of `target` is cached, the inputs leave
            no runs to search with or are in the holdout too, or a run draws without the model.
        TypeError: `run` or `run_with_steps` can't be called.
    """
    _check_functions(run=run, run_with_steps=run_with_steps)
    goal = Goal(target_psnr, target_ssim, compute_budget)
    runs_a_holdout = 2 if run_with_steps is None else 3
    check_inputs(inputs, holdout, runs_a_holdout)
    bench = Bench(target, run, measures_ssim=target_ssim is not None)
    with _put_back_if_it_raises(target):
        search = Search(bench, goal, inputs, num_kept_back=runs_a_holdout * len(holdout))
        proposals = _record(bench, inputs)
        best = search.find(proposals)
        bench.draw_uncached(holdout, {"enabled": False})
        checked = bench.try_out(holdout, best.settings)
        fewer = None
        if run_with_steps is not None:
            num_steps = num_steps_for(checked.share, proposals.num_steps)
            fewer = bench.try_fewer_steps(holdout, run_with_steps, num_steps, proposals.num_steps)
        configure(target, **best.settings, enabled=True)
    noise = rounding_noise(proposals.recordings)
    warning = below_noise(best.settings, noise)
    if warning is not None:
        log.warning("calibrate: %s", warning)
    return CalibratedConfig(
        best, checked, search.points, str(goal), goal.quality_name,
        is_found=goal.holds(best), is_reached=goal.holds(checked),
        num_runs=bench.num_runs, run_cost=bench.run_cost, fewer_steps=fewer,
        rounding_noise=noise,
    )  # fmt: skip


def _check_functions(**functions: object) -> None:
    """Before anything is drawn: `run_with_steps` is called last of all."""
    for name, function in functions.items():
        if not callable(function) and not (name == "run_with_steps" and function is None):
            raise TypeError(f"calibrate: {name} must be a function that draws, got {function!r}")


@contextmanager
def _put_back_if_it_raises(target: object) -> Iterator[None]:
    """Leave the settings of each transformer as they were. A run is the caller's code, which may
    fail, and may be interrupted."""
    modules = modules_in(target)
    before = [state.overrides for state in REGISTRY.states_of(modules)]
    try:
        yield
    except BaseException:
        # Found anew: graphs that a run compiled may have joined their states.
        for state, overrides in zip(REGISTRY.states_of(modules), before, strict=True):
            state.overrides = overrides
        raise


def _record(bench: Bench, inputs: Inputs) -> Proposals:
    """Uncached runs with a sample of every step of them."""
    states = REGISTRY.states_of(modules_in(bench.target))
    for state in states:
        state.recordings.clear()
    bench.draw_uncached(inputs, {**UNCACHED, "enabled": True, "dry_run": ()})
    configure(bench.target, dry_run=None)
    recordings = [list(recording) for state in states for recording in state.recordings]
    if not recordings:
        raise InvalidConfig(
            "nothing of this model is cached: `summary` has the reason, unless the runs never "
            "called it"
        )
    longest = max(map(len, recordings))
    num_blocks = max(graph.num_blocks for graph in summary(bench.target).graphs)
    return Proposals([r for r in recordings if len(r) == longest], num_blocks)
