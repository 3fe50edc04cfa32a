"""Decibels of several pictures, where some may equal what they are compared with."""

from torch import Tensor


def mean_db(values: Tensor) -> float | None:
    """Over the pictures that differ: a single equal one would make the mean infinite. None where
    all are equal."""
    differing = values[values.isfinite()]
    return differing.mean().item() if len(differing) else None


def decibels(value: float | None, unit: str = "") -> str:
    """None is of equal pictures."""
    return "equal" if value is None else f"{value:.1f}{unit}"
