"""A share of the steps, spread over an image of so many: closer where it begins, which is where
guidance bends its path most, and to the last step, which no later one puts right. The gap before
that is short too, since the last steps of a shifted schedule take most of the noise away, and the
longest lie before it.

    compute_share=0.36    28 steps    0 . 2 . 4 . . 7 . . 10 . . 13 . . . 17 . . . 21 . . . 25 . 27
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

MAX_SHORT_GAPS = ((2, 1), (1, 1), (0, 1))  # First ones and last ones: as many as leave room.
SHORT = 2 / 3  # Of the mean gap.
MAX_STRETCH = 4 / 3  # Of the mean gap: what short ones may stretch the others to.
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
        """True for the ends of the short gaps, and of the even ones between, the longer last."""
        num_gaps, short = self._num_computed(num_steps) - 1, self._short_gap
        if num_gaps == 0:
            return step == 0
        num_first, num_last = self._num_short(num_steps, num_gaps)
        start, end = num_first * short, num_steps - 1 - num_last * short
        if not start < step < end:
            return min(abs(step - start), abs(step - end)) % short == 0
        gap, num_longer = divmod(end - start, num_gaps - num_first - num_last)
        before_longer = end - num_longer * (gap + 1)
        if step <= before_longer:
            return (step - start) % gap == 0
        return (end - step) % (gap + 1) == 0

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

    def _num_short(self, num_steps: int, num_gaps: int) -> tuple[int, int]:
        """How many of the first and of the last gaps may be short, so that those between are not
        much longer."""
        mean = min(MAX_STRETCH / self.compute_share, self._longest_gap) + ROUNDING
        for counts in MAX_SHORT_GAPS:
            num_between = num_gaps - sum(counts)
            length = num_steps - 1 - sum(counts) * self._short_gap
            if num_between > 0 and length <= mean * num_between:
                return counts
        return 0, 0
