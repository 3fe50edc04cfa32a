"""What to replay: the base of every predictor.

A computed step keeps the effect of a region on each of its streams, a *snapshot*; a hit puts an
estimate of the effect in its place. Most are weighted sums of the last few snapshots, and so one
pass over memory on the fresh input:

    steps   3   5   6   | 8        weights (Taylor, order 1): 0, -2, 3
    effect  a   b   c   | -2 b + 3 c

Weights are worked out on the host from step numbers alone. A snapshot is stored once, in the
stream's dtype, and never written again: a step that fails half-way leaves what was there before.
"""

import abc
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

CacheType = Literal["residual", "hidden_states"]


class Predictor(abc.ABC):
    """What to replay: the base of every predictor. Each is a frozen dataclass: its fields are its
    options."""

    name: ClassVar[str]
    """What `predictor=` selects it by."""

    @property
    def num_snapshots(self) -> int:
        """How many of the last computed steps are kept."""
        return 1

    @property
    def calibrator_cache_type(self) -> CacheType:
        """What is kept of a stream: what the region added to it, or its value after the region."""
        return "residual"

    @property
    def enable_encoder_calibrator(self) -> bool:
        """False: streams other than the image's are replayed as they were last computed."""
        return True

    @abc.abstractmethod
    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        """One weight a snapshot, for the estimate at `step`. `steps` are those of the snapshots,
        ascending and before `step`; there is at least one."""

    def estimate(
        self, snapshots: Sequence[Tensor], steps: Sequence[int], step: int
    ) -> Tensor | None:
        """The estimated effect, for what is no weighted sum; None to go by the weights."""
        return None
