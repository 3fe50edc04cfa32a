"""HiCache: a forecast in Hermite's polynomials instead of powers (arXiv 2508.16984).

    order   0    1             2
    power   1    k             k^2               k steps after the last computed one
    here    1    s * H1(s k)   s^2 * H2(s k)     with H1(x) = 2x, H2(x) = 4x^2 - 2, s = sigma

The contraction by sigma keeps high orders from exploding. It takes back a part of what is linear as
well: half of it at sigma 0.5, none at sqrt(1/2). As published, but that derivatives are divided
differences, right on uneven gaps and the same on even ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_int, check_number
from dit_cachegraph.policy.predictors.calibrator import Calibrator

MAX_ORDER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HiCache(Calibrator):
    """The options of HiCache."""

    name: ClassVar[str] = "hicache"

    hicache_order: int = 2
    """Degree of the polynomial, 0 to 4; it keeps one value more."""

    hicache_sigma: float = 0.5
    """The contraction, above 0 and at most 1. Smaller is nearer to a replay."""

    def __post_init__(self) -> None:
        check_int("hicache_order", self.hicache_order, at_least=0, at_most=MAX_ORDER)
        check_number("hicache_sigma", self.hicache_sigma)
        if not 0 < self.hicache_sigma <= 1:
            raise InvalidConfig(
                f"hicache_sigma must be above 0 and at most 1, got {self.hicache_sigma!r}"
            )
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return self.hicache_order + 1

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        weights = [0.0] * len(steps)
        ahead = step - steps[-1]
        num_used = min(len(steps), self.num_snapshots)
        basis = scaled_hermite(num_used - 1, ahead, self.hicache_sigma)
        for order, value in enumerate(basis):
            start = len(steps) - 1 - order
            for i, share in enumerate(divided_difference(steps[start:])):
                weights[start + i] += value * share
        return tuple(weights)


def scaled_hermite(order: int, x: float, sigma: float) -> tuple[float, ...]:
    """`sigma^n * H_n(sigma * x)` for n from 0 to `order`, with the physicists' `H_n`."""
    values = [1.0, 2 * sigma * sigma * x]
    for n in range(1, order):
        values.append(2 * sigma * sigma * (x * values[n] - n * values[n - 1]))
    return tuple(values[: order + 1])


def divided_difference(steps: Sequence[float]) -> tuple[float, ...]:
    """The weights of the divided difference over values at `steps`: the derivative of the order
    `len(steps) - 1`, over the factorial of that."""
    shares = []
    for i, own in enumerate(steps):
        share = 1.0
        for j, other in enumerate(steps):
            if j != i:
                share /= own - other
        shares.append(share)
    return tuple(shares)
