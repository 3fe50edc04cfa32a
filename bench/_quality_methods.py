"""What is compared, each as a row: fewer steps, ours, and the peers.

To add a method, add a row to a table, or a table with a maker of its own to `all_methods`.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline, SchedulerMixin

from bench import _quality_peers as peers
from bench import _quality_solvers as solvers
from bench._quality_draw import Artist, Drawn, by_ours, by_pipeline, by_solver, sampled_by
from bench._quality_models import QualityModel
from dit_cachegraph.policy.presets import PRESETS
from dit_cachegraph.policy.step_mask import steps_mask

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Method:
    """One row. `draw(artist, num_steps)`; `group` is one line of the plot."""

    name: str
    group: str
    draw: Callable[[Artist, int], Drawn]
    tier: int


THIN, QUICK, WHOLE = range(3)
"""What is measured first, what else in a quick run, and what at all."""


SOLVERS: Sequence[tuple[str, Callable[[], SchedulerMixin], Sequence[float]]] = (
    ("euler", solvers.euler, (0.75, 0.5, 0.61, 0.43, 0.36, 0.25)),
    ("adams-bashforth", solvers.adams_bashforth, (1, 0.75, 0.5, 0.36, 0.25)),
    ("unipc", solvers.unipc, (0.5, 0.75, 0.36)),
)

ORDERS = ("replay", "order 1", "order 2")  # of TaylorSeer
FIRST_AND_LAST = {
    (1, 0): (0.1, 0.2, 0.05, 0.3),
    (4, 0): (0.1, 0.2),
    (1, 2): (0.2,),
    (4, 4): (0.2,),
}
FORECAST_THRESHOLDS = (0.1, 0.2)
INTERVALS = (2, 3, 4)
MASK_NAMES = ("medium", "fast")
PRUNE_THRESHOLDS = (0.05, 0.1, 0.2)
# Predictors under error control, each with the tolerances that no preset has.
ERROR_CONTROL: Mapping[str, tuple[Settings, Sequence[float]]] = {
    "replay": ({"predictor": "replay"}, (0.15, 0.3)),
    "order 1": ({"predictor": "taylorseer", "taylorseer_order": 1}, (0.04, 0.2, 0.3)),
    "order 2": ({"predictor": "taylorseer", "taylorseer_order": 2}, (0.06, 0.15)),
    "FoCa": ({"predictor": "foca"}, (0.05, 0.1, 0.2)),
}

MakePipeline = Callable[[QualityModel, float, int], DiffusionPipeline]
MAG_THRESHOLDS = (0.06, 0.03, 0.12)
# Name, maker, values of its one option, and the value that a quick run takes.
DIFFUSERS: Sequence[tuple[str, MakePipeline, Sequence[float], float]] = (
    ("first block", peers.with_first_block_cache, (0.1, 0.05, 0.2), 0.1),
    ("TaylorSeer", peers.with_taylorseer, (2, 4), 2),
    ("TaylorSeer lite", peers.with_taylorseer_lite, (2, 3, 4), 2),
    ("MagCache", peers.with_mag_cache, MAG_THRESHOLDS, 0.06),
)


def _magcache(model: QualityModel, num_steps: int) -> Settings:
    return {"mag_ratios": tuple(peers.mag_ratios(model, num_steps))}


def _seacache(model: QualityModel, _num_steps: int) -> Settings:
    return {"seacache_grid": model.grid}


def _nothing(_model: QualityModel, _num_steps: int) -> Settings:
    return {}


# Published rules, each with what it has to be told, and thresholds. TeaCache has no coefficients
# here: those that others fitted are of other models.
PUBLISHED: Mapping[str, tuple[Callable[[QualityModel, int], Settings], Sequence[float]]] = {
    "MagCache": (_magcache, MAG_THRESHOLDS),
    "SeaCache": (_seacache, (0.1, 0.2, 0.3)),
    "EasyCache": (_nothing, (0.05, 0.1)),
    "TeaCache": (_nothing, (0.1, 0.2)),
}


def every(num_steps: int, interval: int, warmup: int) -> tuple[int, ...]:
    """A mask that computes the first `warmup` steps, and then every `interval`-th."""
    return tuple(
        int(i < warmup or (i - warmup) % interval == interval - 1) for i in range(num_steps)
    )


def _uncached() -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        curves = [(1.0,) * num_steps] * len(artist.batches)
        return Drawn(artist.uncached(num_steps), 1.0, curves)

    return Method("uncached", "uncached", draw, THIN)


def _fewer_steps(name: str, make: Callable[[], SchedulerMixin], share: float) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_solver(artist, make(), max(2, round(share * num_steps)), num_steps)

    tier = {0.5: THIN, 0.75: QUICK, 1: QUICK}.get(share, WHOLE)
    return Method(f"{name} {share:g}", f"fewer steps, {name}", draw, tier)


def dbcache(first: int, last: int, threshold: float) -> Settings:
    return {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "residual_diff_threshold": threshold,
        "max_warmup_steps": 4,
    }


def _static(mask: tuple[int, ...], warmup: int) -> Settings:
    return {
        **dbcache(1, 0, 1.0),
        "max_warmup_steps": warmup,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }


@dataclass(frozen=True, slots=True)
class Pair:
    """The same options for ours and for cache-dit. `settings` gets the number of steps."""

    name: str
    kind: str
    settings: Callable[[int], Settings]
    order: int = 0
    prunes: bool = False

    @property
    def full_name(self) -> str:
        """With the order of its forecasts."""
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return f" {ORDERS[self.order]}" if self.order else ""

    def by_ours(self, artist: Artist, num_steps: int) -> Drawn:
        # As cache-dit decides: by the mean of the batch.
        settings = {**self.settings(num_steps), "batch_rule": "mean"}
        if self.prunes:
            settings["rule"] = "dbprune"
        return by_ours(artist, {**settings, **_forecast(self.order)}, num_steps)

    def by_cache_dit(self, artist: Artist, num_steps: int) -> Drawn:
        settings = self.settings(num_steps)
        pipe = peers.with_cache_dit(artist.model, settings, self.order, prunes=self.prunes)
        return by_pipeline(artist, pipe, num_steps)

    def methods(self, tier: int) -> Iterable[Method]:
        name, group = self.full_name, self.kind + self._suffix
        yield Method(f"ours {name}", f"ours, {group}", self.by_ours, tier)
        if importlib.util.find_spec("cache_dit") is not None:
            yield Method(f"cache-dit {name}", f"cache-dit, {group}", self.by_cache_dit, tier)


def pairs() -> Iterable[tuple[Pair, int]]:
    """Each pair with its tier."""
    for (first, last), thresholds in FIRST_AND_LAST.items():
        for threshold in thresholds:
            make = _always(dbcache(first, last, threshold))
            tier = {(1, 0, 0.1): THIN, (1, 0, 0.2): QUICK}.get((first, last, threshold), WHOLE)
            yield Pair(f"F{first}B{last} R{threshold:g}", "threshold", make), tier
    for order, threshold in itertools.product((1, 2), FORECAST_THRESHOLDS):
        pair = Pair(f"F1B0 R{threshold:g}", "threshold", _always(dbcache(1, 0, threshold)), order)
        yield pair, QUICK if (order, threshold) == (1, 0.1) else WHOLE
    for interval, order in itertools.product(INTERVALS, range(3)):
        pair = Pair(f"W6 every {interval}", "even mask", _even(interval), order)
        yield pair, {(2, 1): THIN, (2, 0): QUICK}.get((interval, order), WHOLE)
    for name, order in itertools.product(MASK_NAMES, range(3)):
        yield Pair(f"mask {name}", "named mask", _named(name), order), WHOLE
    for threshold in PRUNE_THRESHOLDS:
        make = _always(dbcache(1, 0, threshold))
        yield (
            Pair(f"DBPrune R{threshold:g}", "DBPrune", make, prunes=True),
            (QUICK if threshold == 0.1 else WHOLE),
        )


def _always(settings: Settings) -> Callable[[int], Settings]:
    """The same for any number of steps."""
    return lambda _num_steps: settings


def _even(interval: int) -> Callable[[int], Settings]:
    return lambda num_steps: _static(every(num_steps, interval, 6), 6)


def _named(name: str) -> Callable[[int], Settings]:
    def settings(num_steps: int) -> Settings:
        mask = steps_mask(total_steps=num_steps, mask_policy=name)
        return _static(mask, mask.index(0))

    return settings


def _of_diffusers(name: str, make: MakePipeline, value: float, tier: int) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_pipeline(artist, make(artist.model, value, num_steps), num_steps)

    return Method(f"diffusers {name} {value:g}", f"diffusers, {name}", draw, tier)


def _ours(name: str, group: str, settings: Settings, tier: int) -> Method:
    def draw(artist: Artist, num_steps: int) -> Drawn:
        return by_ours(artist, settings, num_steps)

    return Method(f"ours {name}", f"ours, {group}", draw, tier)


def _ours_and_solver(preset: str) -> Method:
    """All steps, by a second-order solver, most of them with the cache: a user of such a solver
    asks for this."""

    def draw(artist: Artist, num_steps: int) -> Drawn:
        solver = solvers.adams_bashforth()
        return by_ours(sampled_by(artist, solver), {"preset": preset}, num_steps)

    return Method(
        f"ours preset {preset}, adams-bashforth", "ours, with adams-bashforth", draw, QUICK
    )


def _rows_of_ours() -> Iterable[Method]:
    """What no peer has the same options for."""
    for name in PRESETS:
        yield _ours(f"preset {name}", "error control order 1", {"preset": name}, THIN)
        yield _ours_and_solver(name)
    for kind, (predictor, tolerances) in ERROR_CONTROL.items():
        for tolerance in tolerances:
            settings = {"rule": "error_control", "error_tolerance": tolerance, **predictor}
            yield _ours(f"E{tolerance:g} {kind}", f"error control {kind}", settings, WHOLE)
    for rule, (_, thresholds) in PUBLISHED.items():
        for threshold, order in itertools.product(thresholds, (0, 1)):
            yield _published(rule, threshold, order)


def _published(rule: str, threshold: float, order: int) -> Method:
    told, _ = PUBLISHED[rule]
    suffix = f" {ORDERS[order]}" if order else ""

    def draw(artist: Artist, num_steps: int) -> Drawn:
        name = rule.lower()
        settings = {"rule": name, f"{name}_threshold": threshold, **_forecast(order)}
        return by_ours(artist, {**settings, **told(artist.model, num_steps)}, num_steps)

    return Method(f"ours {rule} {threshold:g}{suffix}", f"ours, {rule}{suffix}", draw, WHOLE)


def _forecast(order: int) -> Settings:
    """A replay at order 0."""
    if order == 0:
        return {"predictor": "replay"}
    return {"predictor": "taylorseer", "taylorseer_order": order}


def all_methods() -> list[Method]:
    """In the order of a run: what matters most comes first."""
    rows = [_uncached(), *_rows_of_ours()]
    rows += [_fewer_steps(name, make, s) for name, make, shares in SOLVERS for s in shares]
    for name, make, values, quick in DIFFUSERS:
        rows += [_of_diffusers(name, make, v, QUICK if v == quick else WHOLE) for v in values]
    for pair, tier in pairs():
        rows += pair.methods(tier)
    return sorted(rows, key=lambda row: row.tier)
