"""DMD: dynamic mode decomposition (Schmid 2010), a forecast by exponentials where Taylor's is one
by powers (`DMDCalibratorConfig` of cache-dit, from HiCache++).

    steps     0   3   6   9   | 11       A = the operator with  b = A a, c = A b, d = A c
    effect    a   b   c   d   | d + (A^(2/3) - 1) d

A is fitted to each sample by itself. Sums of exponentials, damped or oscillating, are met exactly.
It takes evenly spaced values, 4 or more since a wave takes 3 pairs; else the forecast is Taylor's
of order 1, right on gaps. It is a weighted sum of the values after all, by weights that follow from
their inner products. These are worked out on the device, and nothing is copied to the host; on a
GPU torch's routine for eigenvalues may wait by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dit_cachegraph.policy.checks import check_choice, check_int, check_number
from dit_cachegraph.policy.predictors.calibrator import Calibrator
from dit_cachegraph.policy.predictors.inner_products import inner_products, one_a_sample
from dit_cachegraph.policy.predictors.taylorseer import taylor

Precision = Literal["low", "medium", "high"]
MIN_SNAPSHOTS = 4
NUM_SAMPLED = 4096  # At precision "low".
SMALLEST_MODE = 1e-4  # of the norm of all values
TINY = 1e-30
LARGEST_WEIGHTS = 1e3  # No forecast is as large, whatever its fit.


@dataclass(frozen=True, slots=True, kw_only=True)
class DMD(Calibrator):
    """The options of DMD."""

    name: ClassVar[str] = "dmd"

    dmd_history: int = 6
    """How many of the last computed steps are kept, 4 or more. Few, since the operator drifts."""

    dmd_rank: int = 0
    """At most so many modes; 0 for all that are no rounding."""

    dmd_ridge: float = 1e-8
    """What is added to singular values that are divided by, as a share of the largest."""

    dmd_svd_precision: Precision = "medium"
    """What is fitted: "low" 4096 elements of a sample, "medium" all, "high" all at once,
    which takes a float64 copy of them."""

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
        return (*[0.0] * (len(steps) - 2), *taylor(steps[-2:], step))

    def estimate(
        self, snapshots: Sequence[Tensor], steps: Sequence[int], step: int
    ) -> Tensor | None:
        num_even = _num_evenly_spaced(steps)
        if num_even < MIN_SNAPSHOTS:
            return None
        snapshots = snapshots[-num_even:]
        products = self._products(snapshots)
        ahead, gap = step - steps[-1], steps[-1] - steps[-2]
        weights = _weights(products, ahead, gap, self.dmd_rank, self.dmd_ridge)
        return _weighted_sum(snapshots, weights)

    def _products(self, snapshots: Sequence[Tensor]) -> Tensor:
        if self.dmd_svd_precision == "low":
            return inner_products(snapshots, num_sampled=NUM_SAMPLED)
        if self.dmd_svd_precision == "medium":
            return inner_products(snapshots)
        return inner_products(snapshots, chunk=max(1, snapshots[-1].numel()))


def _num_evenly_spaced(steps: Sequence[int]) -> int:
    """How many of the last steps are as far apart as the last two."""
    count = min(len(steps), 2)
    while count < len(steps) and steps[-count] - steps[-count - 1] == steps[-1] - steps[-2]:
        count += 1
    return count


def _weights(products: Tensor, ahead: int, gap: int, rank: int, ridge: float) -> Tensor:
    """One weight a snapshot of each sample, [samples, n]; those of a replay where there is no fit.
    Modes that are left out are zeros here, so that no shape hangs on the values."""
    num = products.shape[-1]
    scale = products.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    is_fit = products.isfinite().all(-1).all(-1)[:, None, None] & (scale > 0)
    identity = torch.eye(num, dtype=products.dtype, device=products.device)
    products = torch.where(is_fit, products / scale, identity)
    values, vectors = torch.linalg.eigh(products[:, :-1, :-1])
    sizes, vectors = values.flip(-1).clamp(min=TINY).sqrt()[:, None], vectors.flip(-1)
    is_ranked = torch.arange(num - 1, device=products.device) < (rank or num)
    is_mode = ((sizes > SMALLEST_MODE) & is_ranked).double()
    lift = vectors * is_mode / (sizes + ridge * sizes[..., :1])
    others = torch.diag_embed(1 - is_mode[:, 0])
    operator = (vectors * is_mode / sizes).mT @ products[:, :-1, 1:] @ lift
    after = lift.mT @ products[:, 1:, 1:]
    now = torch.linalg.solve_ex(after @ lift + others, after[..., -1:]).result
    growth, modes = torch.linalg.eig(operator)
    shares = torch.linalg.solve_ex(modes, now.to(modes)).result
    moved = modes @ ((growth[..., None] ** (ahead / gap) - 1) * shares)
    grown = (lift @ moved.real)[..., 0]
    is_fit = is_fit[..., 0] & (grown.abs().sum(-1, keepdim=True) < LARGEST_WEIGHTS)
    weights = torch.zeros_like(products[:, 0])
    weights[:, -1] = 1.0
    weights[:, 1:] += torch.where(is_fit, grown, 0.0)
    return weights


def _weighted_sum(snapshots: Sequence[Tensor], weights: Tensor) -> Tensor:
    """In float32, then as a snapshot is laid out; the newest where that overflows its dtype."""
    newest = snapshots[-1]
    weights = weights.to(newest.device, torch.float32)
    total = torch.zeros_like(newest, dtype=torch.float32)
    for snapshot, own in zip(snapshots, weights.unbind(dim=1), strict=True):
        total.addcmul_(snapshot.float(), one_a_sample(own, newest))
    effect = total.to(newest.dtype)
    return torch.where(effect.isfinite(), effect, newest)
