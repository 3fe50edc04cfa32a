"""Medians with their quartiles, of times and of ratios that were measured side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a sample."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles of one or more values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of `values[i] / base[i]`: both were measured in the same round."""
    return spread_of([v / b for v, b in zip(values, base, strict=True)])
