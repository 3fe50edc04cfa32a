"""How the samples of a batch decide together."""

import math
from collections.abc import Sequence
from typing import Literal

BatchRule = Literal["max", "mean", "per_sample"]
BATCH_RULES: tuple[BatchRule, ...] = ("max", "mean", "per_sample")


def batch_diff(moved: Sequence[float], size: Sequence[float], rule: BatchRule) -> float:
    """Relative L1 difference of a batch from its samples' `sum|v - a|` and `sum|a|`. Not finite
    where any sample isn't, where what it is compared with is zero, or where there is none."""
    if rule == "mean":
        return _ratio(sum(moved), sum(size))
    ratios = [_ratio(m, s) for m, s in zip(moved, size, strict=True)]
    # `max` ignores a NaN that doesn't come first.
    return math.nan if any(math.isnan(r) for r in ratios) else max(ratios, default=math.nan)


def worst_sample(moved: Sequence[float], size: Sequence[float], rule: BatchRule) -> int | None:
    """The sample whose difference is that of the batch, the first of those that can't be told;
    None where there is one alone, or all count."""
    if rule == "mean" or len(moved) < 2:
        return None
    ratios = [_ratio(m, s) for m, s in zip(moved, size, strict=True)]
    return max(range(len(ratios)), key=lambda i: math.inf if math.isnan(ratios[i]) else ratios[i])


def _ratio(moved: float, size: float) -> float:
    if not math.isfinite(size):
        return math.nan
    if size == 0:
        return math.nan if moved == 0 or math.isnan(moved) else math.inf
    return moved / size
