"""FoCa: forecast, then calibrate (arXiv 2508.16211; `FoCaCalibratorConfig` of cache-dit).

The effect of a region is taken for the solution of an ODE over the steps, and a step over a gap is
one of a predictor-corrector method: BDF2 says how fast the effect moves where the step ends, and
Heun's trapezium takes the mean of that and of how fast it moved between the last computed steps.

    steps    0    2    6   | 8
    effect   a    b    c   | c + 2 / 2 * (moved + ahead)
    moved    (c - b) / 4
    ahead    moved + 4 / 6 * (moved - (b - a) / 2)         (3c - 4b + a) / 2 over gaps of one

Exact on what moves evenly, over any gaps. cache-dit takes `c - b` for `moved` whatever the gap, and
leans back to a replay after three steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.predictors.calibrator import Calibrator
from dit_cachegraph.policy.predictors.taylorseer import taylor


@dataclass(frozen=True, slots=True, kw_only=True)
class FoCa(Calibrator):
    """The options of FoCa, which has none of its own."""

    name: ClassVar[str] = "foca"

    @property
    def num_snapshots(self) -> int:
        return 3

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        if len(steps) < self.num_snapshots:
            return taylor(steps, step)
        num_unused = len(steps) - self.num_snapshots
        first, middle, last = steps[num_unused:]
        gap, older_gap, ahead = last - middle, middle - first, step - last
        bend = gap / (gap + older_gap) / 2
        by_slope = ahead * (1 + bend) / gap
        by_older_slope = -ahead * bend / older_gap
        weights = (-by_older_slope, by_older_slope - by_slope, 1 + by_slope)
        return (*[0.0] * num_unused, *weights)
