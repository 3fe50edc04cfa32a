"""An even schedule: compute every so many steps (FORA, arXiv 2407.01425), after a warm-up.

every=3, max_warmup_steps=2    0 1 . . 4 . . 7 . .
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.checks import check_int
from dit_cachegraph.policy.rule import Decision, History, Observation, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenSchedule(Schedule):
    """The options of an even schedule."""

    name: ClassVar[str] = "even"

    every: int = 2
    """Compute one of so many steps; 1 computes all."""

    max_warmup_steps: int = 2
    """The first steps of an image, always computed. The next is `every` steps after the last of
    them."""

    def __post_init__(self) -> None:
        check_int("every", self.every, at_least=1)
        check_int("max_warmup_steps", self.max_warmup_steps, at_least=1)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        since = history.step - (self.max_warmup_steps - 1)
        if since < 0:
            return "warmup"
        return f"every {self.every} steps" if since % self.every == 0 else None

    def decide(self, history: History, observation: Observation) -> Decision:
        return Decision(True, f"hit, every {self.every} steps one computes")
