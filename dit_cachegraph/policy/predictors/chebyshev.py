"""Spectrum: Chebyshev polynomials over the whole run, fitted with a ridge (arXiv 2603.01623).

    effect(step) ~ sum of c_m T_m(x)     x = 2 step / num_steps - 1
    c            least squares over what is kept, plus ridge * sum of c_m^2 over m > 0

What is fitted is linear in what is kept, so the forecast is a weighted sum, with weights from the
steps alone. Published with all computed steps kept and c_0 in the ridge, too: here the memory has a
bound, and a constant stays what it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dit_cachegraph.policy.checks import check_int, check_number
from dit_cachegraph.policy.predictors.calibrator import Calibrator


@dataclass(frozen=True, slots=True, kw_only=True)
class Chebyshev(Calibrator):
    """The options of Spectrum's forecast. Its schedule of growing gaps is a rule's business."""

    name: ClassVar[str] = "chebyshev"

    chebyshev_degree: int = 4
    """Degree of the polynomial, 0 to 16. With fewer values than it takes, the ridge decides."""

    chebyshev_ridge: float = 1e-3
    """Larger smooths more, and is slower to follow. 1e-3 is what the published code is built with;
    its own runs of 50 steps set 0.1, which is little better than a replay on shorter ones."""

    chebyshev_history: int = 10
    """How many of the last computed steps are kept; the published runs keep all."""

    chebyshev_num_steps: int = 50
    """Steps of a run, over which the polynomials are laid. Later ones lie a little outside."""

    def __post_init__(self) -> None:
        check_int("chebyshev_degree", self.chebyshev_degree, at_least=0, at_most=16)
        check_number("chebyshev_ridge", self.chebyshev_ridge)
        check_int("chebyshev_history", self.chebyshev_history, at_least=1)
        check_int("chebyshev_num_steps", self.chebyshev_num_steps, at_least=1)
        Calibrator.__post_init__(self)

    @property
    def num_snapshots(self) -> int:
        return self.chebyshev_history

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        if len(steps) == 1:
            return (1.0,)
        num_unused = max(0, len(steps) - self.num_snapshots)
        basis = self._basis(steps[num_unused:])
        ridge = np.full(self.chebyshev_degree + 1, float(self.chebyshev_ridge))
        ridge[0] = 0.0
        # The inverse that also takes what a ridge of 0 leaves undecided: the smallest fit.
        inverse = np.linalg.pinv(basis.T @ basis + np.diag(ridge), hermitian=True)
        (weights,) = (self._basis([step]) @ inverse @ basis.T).tolist()
        return (*[0.0] * num_unused, *weights)

    def _basis(self, steps: Sequence[int]) -> NDArray[np.float64]:
        """T_0 to T_degree at these steps, [steps, degree + 1]."""
        x = 2 * np.asarray(steps, dtype=np.float64) / self.chebyshev_num_steps - 1
        columns = [np.ones_like(x), x]
        for _ in range(2, self.chebyshev_degree + 1):
            columns.append(2 * x * columns[-1] - columns[-2])
        return np.stack(columns[: self.chebyshev_degree + 1], axis=-1)
