"""DMD: dynamic mode decomposition (Schmid 2010), a forecast by exponentials where Taylor's is one
by powers (`DMDCalibratorConfig` of cache-dit, from HiCache++).

    steps     0   3   6   9   | 11       A = the operator with  b = A a, c = A b, d = A c
    effect    a   b   c   d   | d + (A^(2/3) - 1) d

A is fitted to each sample by itself. Sums of exponentials, damped or oscillating, are met exactly.
It takes evenly spaced values, 4 or more since a wave takes 3 pairs; else the forecast is Taylor's
of order 1, right on gaps. It is a weighted sum of the values after all, by weights that follow from
their inner products: worked out on the host at each hit, for one small copy a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dit_cachegraph.policy.calibrator import Calibrator
from dit_cachegraph.policy.checks import check_choice, check_int, check_number
from dit_cachegraph.policy.taylorseer import lagrange

Precision = Literal["low", "medium", "high"]
MIN_SNAPSHOTS = 4
SMALLEST_MODE = 1e-4  # of the norm of all values
NUM_SAMPLED = 4096
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DMDCalibratorConfig(Calibrator):
    """The options of DMD."""

    name: ClassVar[str] = "dmd"

    dmd_history: int = 6
    """How many of the last computed steps are kept, 4 or more. Few, since the operator drifts."""

    dmd_rank: int = 0
    """At most so many modes; 0 for all that are no rounding."""

    dmd_ridge: float = 1e-8
    """What is added to singular values that are divided by, as a share of the largest."""

    dmd_svd_precision: Precision = "medium"
    """What is fitted: "low" 4096 elements of a sample, "high" all in a float64 copy."""

    def __post_init__(self) -> None:
        check_int("dmd_history", self.dmd_history, at_least=MIN_SNAPSHOTS)
        check_int("dmd_rank", self.dmd_rank, at_least=0)
        check_number("dmd_ridge", self.dmd_ridge)
        check_choice("dmd_svd_precision", self.dmd_svd_precision, ("low", "medium", "high"))
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return self.dmd_history

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        return (*[0.0] * (len(steps) - 2), *lagrange(steps[-2:], step))

    def estimate(
        self, snapshots: Sequence[Tensor], steps: Sequence[int], step: int
    ) -> Tensor | None:
        num_even = _num_evenly_spaced(steps)
        if num_even < MIN_SNAPSHOTS:
            return None
        snapshots = snapshots[-num_even:]
        power = (step - steps[-1]) / (steps[-1] - steps[-2])
        samples = _columns(snapshots, self.dmd_svd_precision)
        weights = [_weights(columns, power, self.dmd_rank, self.dmd_ridge) for columns in samples]
        return _weighted_sum(snapshots, torch.stack(weights))


def _num_evenly_spaced(steps: Sequence[int]) -> int:
    """How many of the last steps are as far apart as the last two."""
    count = min(len(steps), 2)
    while count < len(steps) and steps[-count] - steps[-count - 1] == steps[-1] - steps[-2]:
        count += 1
    return count


def _columns(snapshots: Sequence[Tensor], precision: Precision) -> list[Tensor]:
    """For each sample n columns, [n, n] float64 on the host, with the inner products of its n
    snapshots. Samples lie along dim 0 of three or more; those folded into another share a fit."""
    num_samples = len(snapshots[-1]) if snapshots[-1].ndim > 2 else 1
    flat = [s.reshape(num_samples, -1) for s in snapshots]
    if precision == "high":
        tall = torch.stack([s.double() for s in flat], dim=-1)
        return list(torch.linalg.qr(tall, mode="r").R.cpu())
    if precision == "low":
        flat = [s[:, :: max(1, s.shape[1] // NUM_SAMPLED)] for s in flat]
    products = torch.zeros(())
    for start in range(0, flat[0].shape[1], CHUNK):
        wide = torch.stack([s[:, start : start + CHUNK].double() for s in flat], dim=1)
        products = wide @ wide.mT + products
    return [_root(one) for one in products.cpu()]


def _root(products: Tensor) -> Tensor:
    """Columns with these inner products."""
    if not products.isfinite().all():
        return products
    values, vectors = torch.linalg.eigh(products)
    return values.clamp(min=0).sqrt()[:, None] * vectors.mT


def _weights(columns: Tensor, power: float, rank: int, ridge: float) -> Tensor:
    """One weight a snapshot of one sample, [n]; those of a replay where there is no fit."""
    weights = torch.zeros_like(columns[0])
    weights[-1] = 1.0
    if not columns.isfinite().all():
        return weights
    before, after = columns[:, :-1], columns[:, 1:]
    left, sizes, right = torch.linalg.svd(before, full_matrices=False)
    num_modes = min(int((sizes > SMALLEST_MODE * columns.norm()).sum()), rank or len(sizes))
    if num_modes == 0:
        return weights
    lift = right[:num_modes].mT / (sizes[:num_modes] + ridge * sizes[0])
    modes = after @ lift
    now = torch.linalg.lstsq(modes, after[:, -1:]).solution[:, 0].to(torch.complex128)
    values, vectors = torch.linalg.eig(left[:, :num_modes].mT @ modes)
    shares, _ = torch.linalg.solve_ex(vectors, now)
    grown = lift @ (vectors @ ((values**power - 1) * shares)).real
    if grown.isfinite().all():
        weights[1:] += grown
    return weights


def _weighted_sum(snapshots: Sequence[Tensor], weights: Tensor) -> Tensor:
    """In float32, then as a snapshot is laid out; the newest where that overflows its dtype."""
    newest = snapshots[-1]
    weights = weights.to(newest.device, torch.float32)
    total = torch.zeros_like(newest, dtype=torch.float32)
    for snapshot, own in zip(snapshots, weights.unbind(dim=1), strict=True):
        total.addcmul_(snapshot.float(), own.reshape(-1, *[1] * (newest.ndim - 1)))
    effect = total.to(newest.dtype)
    return torch.where(effect.isfinite(), effect, newest)
