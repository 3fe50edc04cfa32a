"""What is compared, each as a row: fewer steps, ours, and the peers.

To add a method, add a row to a table, or a table with a maker of its own to `all_methods`.
"""

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from diffusers import FluxPipeline, SchedulerMixin

from bench import _quality_peers as peers
from bench import _quality_solvers as solvers
from bench._quality_draw import Artist, Drawn, by_ours, by_pipeline, by_solver
from bench._quality_models import QualityModel
from dit_cachegraph.policy.presets import PRESETS

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `draw(artist, num_steps)`; `group` is one line of the plot."""

    name: str
    group: str
    draw: Callable[[Artist, int], Drawn]
    is_quick: bool = False


SHARES = (0.75, 0.61, 0.5, 0.43, 0.36, 0.25)
QUICK_SHARES = (0.75, 0.5)
SOLVERS: Sequence[tuple[str, Callable[[], SchedulerMixin]]] = (
    ("euler", solvers.euler),
    ("adams-bashforth", solvers.adams_bashforth),
    ("unipc", solvers.unipc),
)

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
QUICK_THRESHOLDS = (0.1, 0.2)
TOLERANCES = (0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3)
QUICK_TOLERANCES = (0.06, 0.15)
FORECASTS: Mapping[str, Settings] = {
    "order 1": {"predictor": "taylorseer", "taylorseer_order": 1},
    "order 2": {"predictor": "taylorseer", "taylorseer_order": 2},
    "FoCa": {"predictor": "foca"},
}
FIRST_AND_LAST = ((1, 0), (2, 0), (4, 0), (1, 2), (4, 4))

MakePipeline = Callable[[QualityModel, float, int], FluxPipeline]
# Name, maker, values of its one option, and the value that a quick run takes.
DIFFUSERS: Sequence[tuple[str, MakePipeline, Sequence[float], float]] = (
    ("first block", peers.with_first_block_cache, (0.05, 0.1, 0.2, 0.3), 0.1),
    ("TaylorSeer", peers.with_taylorseer, (2, 3, 4), 2),
    ("TaylorSeer lite", peers.with_taylorseer_lite, (2, 3, 4), 2),
    ("MagCache", peers.with_mag_cache, (0.03, 0.06, 0.12, 0.24), 0.06),
)


def every(num_steps: int, interval: int, warmup: int) -> tuple[int, ...]:
    """A mask that computes the first `warmup` steps, and then every `interval`-th."""
    return tuple(
        int(i < warmup or (i - warmup) % interval == interval - 1) for i in range(num_steps)
    )


def _fewer_steps(name: str, make: Callable[[], SchedulerMixin], share: float) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_solver(artist, make(), max(2, round(share * num_steps)), num_steps)

    return Method(f"{name} {share:g}", f"fewer steps, {name}", draw, share in QUICK_SHARES)


def _dbcache(first: int, last: int, threshold: float) -> Settings:
    return {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "residual_diff_threshold": threshold,
        "max_warmup_steps": 4,
    }


def _always(settings: Settings) -> Callable[[int], Settings]:
    """The same for any number of steps."""
    return lambda _num_steps: settings


def _static_mask(interval: int, warmup: int, num_steps: int) -> Settings:
    return {
        **_dbcache(1, 0, 1.0),
        "max_warmup_steps": warmup,
        "steps_computation_mask": every(num_steps, interval, warmup),
        "steps_computation_policy": "static",
    }


def _both(name: str, make: Callable[[int], Settings], is_quick: bool) -> list[Method]:
    """The same options through ours and through cache-dit. `make` gets the number of steps."""

    def ours(artist: Artist, num_steps: int) -> Drawn:
        return by_ours(artist, make(num_steps), num_steps)

    def cache_dit(artist: Artist, num_steps: int) -> Drawn:
        pipe = peers.with_cache_dit(artist.model, make(num_steps))
        return by_pipeline(artist, pipe, num_steps)

    kind = "mask" if "every" in name else "threshold"
    rows = [Method(f"ours {name}", f"ours, {kind}", ours, is_quick)]
    if importlib.util.find_spec("cache_dit") is not None:
        rows.append(Method(f"cache-dit {name}", f"cache-dit, {kind}", cache_dit, is_quick))
    return rows


def _of_diffusers(name: str, make: MakePipeline, value: float, is_quick: bool) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_pipeline(artist, make(artist.model, value, num_steps), num_steps)

    return Method(f"diffusers {name} {value:g}", f"diffusers, {name}", draw, is_quick)


def _dbcache_rows() -> list[Method]:
    rows: list[Method] = []
    for (first, last), threshold in itertools.product(FIRST_AND_LAST, THRESHOLDS):
        settings = _dbcache(first, last, threshold)
        is_quick = (first, last) == (1, 0) and threshold in QUICK_THRESHOLDS
        rows += _both(f"F{first}B{last} R{threshold:g}", _always(settings), is_quick)
    for warmup, interval in itertools.product((2, 6), (2, 3, 4)):
        make = partial(_static_mask, interval, warmup)
        rows += _both(f"W{warmup} every {interval}", make, interval == 2)
    return rows


def _ours(name: str, group: str, settings: Settings, is_quick: bool) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_ours(artist, settings, num_steps)

    return Method(f"ours {name}", f"ours, {group}", draw, is_quick)


def _rows_of_ours() -> list[Method]:
    """What no peer has the same options for."""
    rows = [_ours(f"preset {name}", "presets", {"preset": name}, True) for name in PRESETS]
    for (name, predictor), tolerance in itertools.product(FORECASTS.items(), TOLERANCES):
        settings = {"rule": "error_control", "error_tolerance": tolerance, **predictor}
        is_quick = name == "order 1" and tolerance in QUICK_TOLERANCES
        rows.append(_ours(f"E{tolerance:g} {name}", f"error control, {name}", settings, is_quick))
    for (name, predictor), threshold in itertools.product(FORECASTS.items(), THRESHOLDS):
        settings = {**_dbcache(1, 0, threshold), **predictor}
        rows.append(_ours(f"F1B0 R{threshold:g} {name}", f"threshold, {name}", settings, False))
    for interval, (name, predictor) in itertools.product((2, 3, 4), FORECASTS.items()):
        settings = {"rule": "even", "every": interval, "max_warmup_steps": 6, **predictor}
        rows.append(_ours(f"W6 every {interval} {name}", f"mask, {name}", settings, False))
    for threshold in THRESHOLDS:
        settings = {**_dbcache(1, 0, threshold), "rule": "dbprune"}
        rows.append(_ours(f"DBPrune R{threshold:g}", "DBPrune", settings, False))
    return rows


def all_methods() -> list[Method]:
    """In the order of a run."""
    rows = [_fewer_steps(name, make, share) for name, make in SOLVERS for share in SHARES]
    rows += _rows_of_ours()
    rows += _dbcache_rows()
    for name, make, values, quick in DIFFUSERS:
        rows += [_of_diffusers(name, make, value, value == quick) for value in values]
    return rows
