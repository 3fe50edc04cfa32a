"""A share of the steps, spread over an image of so many: closer where it begins, which is where
guidance bends its path most, and to the last step, which no later one puts right.

    compute_share=0.36    28 steps    0 . 2 . 4 . . 7 . . . 11 . . 14 . . 17 . . 20 . . . 24 . . 27
                          not told    0 . . 3 . . 6 . .

`docs/quality.md` has what it is worth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_number
from dit_cachegraph.policy.rule import Decision, History, Observation, Schedule

NUM_SHORT_GAPS = 2
SHORT = 2 / 3  # Of the mean gap.
MAX_STRETCH = 1.2  # Of the mean gap: what short ones may stretch the others to.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadSchedule(Schedule):
    """The options of a spread schedule."""

    name: ClassVar[str] = "spread"

    compute_share: float = 0.36
    """The share of the steps that compute, above 0 and at most 1, where `num_inference_steps` says
    how many there are. More do where gaps would be longer than one step over the mean. Not told, it
    computes every so many steps."""

    def __post_init__(self) -> None:
        check_number("compute_share", self.compute_share)
        if not 0 < self.compute_share <= 1:
            raise InvalidConfig(
                f"compute_share must be above 0 and at most 1, got {self.compute_share!r}"
            )

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        step, num_steps = history.step, history.num_steps
        if num_steps is None:
            return f"every {self._every} steps" if step % self._every == 0 else None
        if step >= num_steps:
            return f"past the {num_steps} steps"
        return "spread" if self._is_computed(step, num_steps) else None

    def decide(self, history: History, observation: Observation) -> Decision:
        return Decision(True, "hit between those that are spread")

    def _is_computed(self, step: int, num_steps: int) -> bool:
        """True for the steps of the short gaps, and those nearest to even gaps from there on."""
        num_gaps = self._num_computed(num_steps) - 1
        if num_gaps == 0:
            return step == 0
        num_short, short = self._num_short(num_steps, num_gaps), self._short_gap
        start = num_short * short
        if step < start:
            return step % short == 0
        num_even, length = num_gaps - num_short, num_steps - 1 - start
        k = round((step - start) * num_even / length)
        return round(k * length / num_even) == step - start

    def _num_computed(self, num_steps: int) -> int:
        least = 1 + math.ceil((num_steps - 1) / self._longest_gap)
        return max(int(self.compute_share * num_steps + ROUNDING), least)

    @property
    def _every(self) -> int:
        """The mean gap, in whole steps."""
        return math.ceil(1 / self.compute_share - ROUNDING)

    @property
    def _longest_gap(self) -> int:
        return self._every + 1

    @property
    def _short_gap(self) -> int:
        return max(round(SHORT / self.compute_share), 1)

    def _num_short(self, num_steps: int, num_gaps: int) -> int:
        """How many gaps may be short, so that those that are left are not much longer."""
        mean = min(MAX_STRETCH / self.compute_share, self._longest_gap) + ROUNDING
        for num_short in range(min(NUM_SHORT_GAPS, num_gaps - 1), 0, -1):
            left = num_steps - 1 - num_short * self._short_gap
            if left <= mean * (num_gaps - num_short):
                return num_short
        return 0
