"""TaylorSeer: a forecast by finite differences over the steps in between (arXiv 2503.06923; the
options are those of cache-dit).

A Taylor series at the last computed step: divided differences of the last `order + 1` values are
its derivatives, as in the paper for even gaps, over any gaps. The polynomial *through* the values,
exact where these lie on one, swings wider: with it, order 2 was up to 5 dB worse than cache-dit's
under thresholds and masks (`python -m bench.quality`, both settings of FLUX), and now it isn't.
cache-dit divides every difference by the last gap alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.checks import check_int
from dit_cachegraph.policy.predictors.calibrator import Calibrator

MAX_ORDER = 4
# The values of an image's first two steps make a line at most: a bend between pure noise and what
# comes after it says little of the path (as in cache-dit, for its derivatives of any order).
FIRST_CURVED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorSeer(Calibrator):
    """The options of TaylorSeer."""

    name: ClassVar[str] = "taylorseer"

    taylorseer_order: int = 1
    """How many derivatives, 0 to 4; it keeps one value more. Above 1 it pays on smooth paths
    alone."""

    def __post_init__(self) -> None:
        check_int("taylorseer_order", self.taylorseer_order, at_least=0, at_most=MAX_ORDER)
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return self.taylorseer_order + 1

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        num_later = sum(own >= FIRST_CURVED for own in steps)
        num_unused = len(steps) - min(len(steps), self.num_snapshots, max(2, num_later))
        return (*[0.0] * num_unused, *taylor(steps[num_unused:], step))


def taylor(steps: Sequence[int], step: int) -> tuple[float, ...]:
    """The weights of the values at `steps` in their Taylor series at the last, up to `step`."""
    ahead = step - steps[-1]
    weights = [0.0] * len(steps)
    for degree in range(len(steps)):
        first = len(steps) - 1 - degree
        for i, own in enumerate(steps[first:], first):
            others = (own - other for other in steps[first:] if other != own)
            weights[i] += ahead**degree / math.prod(others)
    return tuple(weights)
