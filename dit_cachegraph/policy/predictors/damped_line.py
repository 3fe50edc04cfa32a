"""A line, damped by how much of the line before came true.

    steps     0   3   6   | 8        promised  (b - a) per step, from 0 to 3
    effect    a   b   c   | ?        kept      (c - b) per step, from 3 to 6

    came true <kept, promised> / <promised, promised>, between 0 and 1
    share     a quarter, and of the other three as much as came true
    forecast  c + share * (8 - 6) * kept

Of a smooth path the share is near 1, and the forecast TaylorSeer's of order 1. Where the path
turns, as under strong guidance, a line overshoots, and the share is near a quarter, as for the
first two values. Each stream of each sample has its share, which is worked out on the device;
nothing is copied to the host. `docs/quality.md` has what it is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_cachegraph.policy.checks import check_share
from dit_cachegraph.policy.predictors.calibrator import Calibrator
from dit_cachegraph.policy.predictors.inner_products import inner_products, one_a_sample

NUM_SNAPSHOTS = 3
NUM_SAMPLED = 1 << 18  # Elements of a sample: its share is known to a few thousandths by these.


@dataclass(frozen=True, slots=True, kw_only=True)
class DampedLine(Calibrator):
    """The options of a damped line."""

    name: ClassVar[str] = "damped_line"

    damped_line_least: float = 0.25
    """The share of the line that is kept however little of the one before came true, from 0 to 1,
    which is TaylorSeer's. A whole line is better where paths are smooth, none where they turn."""

    def __post_init__(self) -> None:
        check_share("damped_line_least", self.damped_line_least)
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return NUM_SNAPSHOTS

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        """Those of a line of which nothing came true."""
        if len(steps) == 1:
            return (1.0,)
        ahead = self.damped_line_least * (step - steps[-1]) / (steps[-1] - steps[-2])
        return (*[0.0] * (len(steps) - 2), -ahead, 1.0 + ahead)

    def estimate(
        self, snapshots: Sequence[Tensor], steps: Sequence[int], step: int
    ) -> Tensor | None:
        if len(steps) < NUM_SNAPSHOTS:
            return None
        first, middle, last = steps
        came_true = _movement_along(snapshots) * (middle - first) / (last - middle)
        least = self.damped_line_least
        share = least + (1 - least) * came_true.clamp(0, 1)
        ahead = share * (step - last) / (last - middle)
        newest = snapshots[-1]
        return torch.lerp(newest, snapshots[-2], one_a_sample((-ahead).to(newest), newest))


def _movement_along(snapshots: Sequence[Tensor]) -> Tensor:
    """How far the values moved along their movement before, in units of it, [samples]; 0 where they
    had not moved, or are no numbers."""
    products = inner_products(snapshots, num_sampled=NUM_SAMPLED)
    of_moves = products.diff(dim=1).diff(dim=2)
    share = of_moves[:, 0, 1] / of_moves[:, 0, 0]
    return torch.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0)
