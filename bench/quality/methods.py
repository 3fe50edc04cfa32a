"""What is compared, each as a row: fewer steps, ours, and the peers.

To add a method, add a row to a table, or a table with a maker of its own to `all_methods`.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffusers import DiffusionPipeline, SchedulerMixin

from bench.quality import peers, solvers
from bench.quality.draw import Artist, Drawn, Settings, by_ours, by_pipeline, by_solver, sampled_by
from bench.quality.models import QualityModel
from bench.quality.pairs import Pair, forecast, pairs, suffix
from dit_cachegraph.policy.presets import PRESETS


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

# Of the pairs, what is measured first, and what else in a quick run.
THIN_PAIRS = ("F1B0 R0.1", "W6 every 2 order 1")
QUICK_PAIRS = ("F1B0 R0.2", "F1B0 R0.1 order 1", "W6 every 2", "DBPrune R0.1")
# Predictors under error control over steps, each with tolerances. Lines of 0.06, 0.1 and 0.15 were
# the presets until those were paced over noise.
ERROR_CONTROL: Mapping[str, tuple[Settings, Sequence[float]]] = {
    "replay": (forecast(0), (0.15, 0.3)),
    "order 1": (forecast(1), (0.04, 0.06, 0.1, 0.15, 0.2, 0.3)),
    "order 2": (forecast(2), (0.06, 0.15)),
    "FoCa": ({"predictor": "foca"}, (0.05, 0.1, 0.2)),
}

MakePipeline = Callable[[QualityModel, float, int], DiffusionPipeline]
MAG_THRESHOLDS = (0.06, 0.03, 0.12)
# Name, maker, values of its one option, and the value that a quick run takes.
DIFFUSERS: Sequence[tuple[str, MakePipeline, Sequence[float], float]] = (
    ("first block", peers.with_first_block_cache, (0.1, 0.05, 0.2), 0.1),
    ("TaylorSeer", peers.with_taylorseer, (2, 4), 2),
    ("TaylorSeer lite", peers.with_taylorseer_lite, (2, 3, 4), 2),
    ("TaylorSeer lite W6", peers.with_later_taylorseer_lite, (2, 3, 4), 2),
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


def _pair(pair: Pair) -> Iterator[Method]:
    """One of ours, and one of cache-dit's where it is installed."""
    name = pair.full_name
    tier = THIN if name in THIN_PAIRS else QUICK if name in QUICK_PAIRS else WHOLE
    yield Method(f"ours {name}", f"ours, {pair.group}", pair.by_ours, tier)
    if importlib.util.find_spec("cache_dit") is not None:
        yield Method(f"cache-dit {name}", f"cache-dit, {pair.group}", pair.by_cache_dit, tier)


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
        yield _ours(f"preset {name}", "presets", {"preset": name}, THIN)
        yield _ours_and_solver(name)
    for kind, (predictor, tolerances) in ERROR_CONTROL.items():
        for tolerance in tolerances:
            settings = {"rule": "error_control", "error_tolerance": tolerance, **predictor}
            yield _ours(f"E{tolerance:g} {kind}", f"error control {kind}", settings, WHOLE)
    for rule, (_, thresholds) in PUBLISHED.items():
        for threshold, order in itertools.product(thresholds, (0, 1)):
            yield _published(rule, threshold, order)


def _published(rule: str, threshold: float, order: int) -> Method:
    (told, _), end = PUBLISHED[rule], suffix(order)

    def draw(artist: Artist, num_steps: int) -> Drawn:
        name = rule.lower()
        settings = {"rule": name, f"{name}_threshold": threshold, **forecast(order)}
        return by_ours(artist, {**settings, **told(artist.model, num_steps)}, num_steps)

    return Method(f"ours {rule} {threshold:g}{end}", f"ours, {rule}{end}", draw, WHOLE)


def all_methods() -> list[Method]:
    """In the order of a run: what matters most comes first."""
    rows = [_uncached(), *_rows_of_ours()]
    rows += [_fewer_steps(name, make, s) for name, make, shares in SOLVERS for s in shares]
    for name, make, values, quick in DIFFUSERS:
        rows += [_of_diffusers(name, make, v, QUICK if v == quick else WHOLE) for v in values]
    for pair in pairs():
        rows += _pair(pair)
    return sorted(rows, key=lambda row: row.tier)
