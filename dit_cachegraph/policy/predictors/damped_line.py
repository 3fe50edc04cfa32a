"""A line, damped by how much of the line before came true.

    steps     0   3   6   | 8        promised  (b - a) per step, from 0 to 3
    effect    a   b   c   | ?        kept      (c - b) per step, from 3 to 6

    share     <kept, promised> / <promised, promised>, between 0 and 1
    forecast  c + share * (8 - 6) * kept

Of a smooth path the share is near 1, and the forecast TaylorSeer's of order 1. Where the path
turns, as under strong guidance, a line overshoots: there the share is near 0, and the forecast a
replay, which is also that of the first two values. Each stream of each sample has its share, which
is worked out on the device; nothing is copied to the host. `docs/quality.md` has what it is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_cachegraph.policy.predictors.calibrator import Calibrator
from dit_cachegraph.policy.predictors.inner_products import inner_products

NUM_SNAPSHOTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DampedLine(Calibrator):
    """The options of a damped line: those of every forecast."""

    name: ClassVar[str] = "damped_line"

    @property
    def num_snapshots(self) -> int:
        return NUM_SNAPSHOTS

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        return (*[0.0] * (len(steps) - 1), 1.0)

    def estimate(
        self, snapshots: Sequence[Tensor], steps: Sequence[int], step: int
    ) -> Tensor | None:
        if len(steps) < NUM_SNAPSHOTS:
            return None
        first, middle, last = steps
        share = _share_that_came_true(snapshots) * (middle - first) / (last - middle)
        ahead = share.clamp(0, 1) * (step - last) / (last - middle)
        newest = snapshots[-1]
        back = (-ahead).to(newest).reshape(-1, *[1] * (newest.ndim - 1))
        return torch.lerp(newest, snapshots[-2], back)


def _share_that_came_true(snapshots: Sequence[Tensor]) -> Tensor:
    """How far the values moved along their movement before, in units of it, [samples]; 0 where they
    had not moved, or are no numbers."""
    of_moves = inner_products(snapshots).diff(dim=1).diff(dim=2)
    share = of_moves[:, 0, 1] / of_moves[:, 0, 0]
    return torch.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0)
