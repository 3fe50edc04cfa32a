"""The same options for ours and for cache-dit: DBCache, masks and DBPrune, with replays and
forecasts.

To add a pair, add a row to a table.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.quality import peers
from bench.quality.draw import Artist, Drawn, Settings, by_ours, by_pipeline
from dit_cachegraph.policy.step_mask import steps_mask

ORDERS = ("replay", "order 1", "order 2")  # of TaylorSeer
# First and last blocks and a threshold; each with the orders of its forecasts.
DBCACHE: Mapping[tuple[int, int, float], Sequence[int]] = {
    (1, 0, 0.1): (0, 1, 2),
    (1, 0, 0.2): (0, 1, 2),
    (1, 0, 0.05): (0, 1),
    (1, 0, 0.3): (0, 1),
    (4, 0, 0.1): (0, 1),
    (4, 0, 0.2): (0, 1),
    (1, 2, 0.2): (0, 1),
    (4, 4, 0.2): (0,),
}
# Warm-up steps and an interval, likewise.
EVEN: Mapping[tuple[int, int], Sequence[int]] = {
    (6, 2): (0, 1, 2),
    (6, 3): (0, 1, 2),
    (6, 4): (0, 1, 2),
    (9, 2): (0, 1),
    (9, 3): (0, 1),
}
MASK_NAMES = ("slow", "medium", "fast", "ultra")
PRUNE_THRESHOLDS = (0.05, 0.1, 0.2)


def suffix(order: int) -> str:
    """What a name ends with, where there is a forecast."""
    return f" {ORDERS[order]}" if order else ""


def forecast(order: int) -> Settings:
    """A replay at order 0."""
    if order == 0:
        return {"predictor": "replay"}
    return {"predictor": "taylorseer", "taylorseer_order": order}


def every(num_steps: int, interval: int, warmup: int) -> tuple[int, ...]:
    """A mask that computes the first `warmup` steps, and then every `interval`-th."""
    return tuple(
        int(i < warmup or (i - warmup) % interval == interval - 1) for i in range(num_steps)
    )


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
        return self.name + suffix(self.order)

    @property
    def group(self) -> str:
        """Those that differ in numbers alone."""
        return self.kind + suffix(self.order)

    def by_ours(self, artist: Artist, num_steps: int) -> Drawn:
        # As cache-dit decides: by the mean of the batch.
        settings = {**self.settings(num_steps), "batch_rule": "mean"}
        if self.prunes:
            settings["rule"] = "dbprune"
        return by_ours(artist, {**settings, **forecast(self.order)}, num_steps)

    def by_cache_dit(self, artist: Artist, num_steps: int) -> Drawn:
        settings = self.settings(num_steps)
        pipe = peers.with_cache_dit(artist.model, settings, self.order, prunes=self.prunes)
        return by_pipeline(artist, pipe, num_steps)


def pairs() -> Iterator[Pair]:
    """All that are compared."""
    for (first, last, threshold), orders in DBCACHE.items():
        make = _always(dbcache(first, last, threshold))
        for order in orders:
            yield Pair(f"F{first}B{last} R{threshold:g}", "threshold", make, order)
    # What cache-dit does where nothing is said.
    defaults = {**dbcache(8, 0, 0.08), "max_warmup_steps": 8}
    for order in (0, 1):
        yield Pair("F8B0 R0.08 W8", "threshold", _always(defaults), order)
    for (warmup, interval), orders in EVEN.items():
        for order in orders:
            yield Pair(f"W{warmup} every {interval}", "even mask", _even(interval, warmup), order)
    for name, order in itertools.product(MASK_NAMES, range(len(ORDERS))):
        yield Pair(f"mask {name}", "named mask", _named(name), order)
    for threshold in PRUNE_THRESHOLDS:
        make = _always(dbcache(1, 0, threshold))
        yield Pair(f"DBPrune R{threshold:g}", "DBPrune", make, prunes=True)


def _always(settings: Settings) -> Callable[[int], Settings]:
    """The same for any number of steps."""
    return lambda _num_steps: settings


def _even(interval: int, warmup: int) -> Callable[[int], Settings]:
    return lambda num_steps: _static(every(num_steps, interval, warmup), warmup)


def _named(name: str) -> Callable[[int], Settings]:
    def settings(num_steps: int) -> Settings:
        mask = steps_mask(total_steps=num_steps, mask_policy=name)
        return _static(mask, mask.index(0))

    return settings
