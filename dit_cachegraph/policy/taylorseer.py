"""TaylorSeer: a forecast by finite differences over the steps in between (arXiv 2503.06923; the
options are those of cache-dit).

The polynomial through the last `order + 1` computed values, in Lagrange's form: exact on
polynomials of that degree over any gaps, and from the earliest step at which that is possible.
Published forms divide backward differences by one gap for all and are exact at order 1 alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.calibrator import Calibrator
from dit_cachegraph.policy.checks import check_int

MAX_ORDER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeerCalibratorConfig(Calibrator):
    """The options of TaylorSeer."""

    name: ClassVar[str] = "taylorseer"

    taylorseer_order: int = 1
    """Degree of the polynomial, 0 to 4; it keeps one value more. Above 1 it pays on smooth paths
    alone."""

    def __post_init__(self) -> None:
        check_int("taylorseer_order", self.taylorseer_order, at_least=0, at_most=MAX_ORDER)
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return self.taylorseer_order + 1

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        num_unused = max(0, len(steps) - self.num_snapshots)
        return (*[0.0] * num_unused, *lagrange(steps[num_unused:], step))


def lagrange(steps: Sequence[float], step: float) -> tuple[float, ...]:
    """The weights by which the polynomial through values at `steps` is evaluated at `step`."""
    weights = []
    for i, own in enumerate(steps):
        weight = 1.0
        for j, other in enumerate(steps):
            if j != i:
                weight *= (step - other) / (own - other)
        weights.append(weight)
    return tuple(weights)
