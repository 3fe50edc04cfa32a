"""What rules share that add up changes from step to step, and compute once they reach a bound.

    step        0    1    2    3    4    5
    change           .1   .1   .2   .1   .1
    added up    .    .1   .2   .    .1   .2      bound .3: steps 0 and 3 compute

The rule's memory is what has been added up since the last computed step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dit_cachegraph.policy.checks import check_choice, check_int
from dit_cachegraph.policy.diffs import BATCH_RULES, BatchRule, batch_diff
from dit_cachegraph.policy.rule import Decision, History, Observation, Rule, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class AddsUp(Rule):
    """A rule that adds up. Its `threshold` is the bound."""

    max_warmup_steps: int = 1
    """The first steps of an image, always computed."""

    batch_rule: BatchRule = "max"
    """How the samples of a batch decide together: "max" by the one that moved most, "mean" by
    their average, as is published; "per_sample" takes batches of `requests` alone."""

    def __post_init__(self) -> None:
        check_int("max_warmup_steps", self.max_warmup_steps, at_least=0)
        check_choice("batch_rule", self.batch_rule, BATCH_RULES)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        """The first steps compute, and the last one where the number of steps is known."""
        if history.step < self.max_warmup_steps:
            return "warmup"
        is_last = history.num_steps is not None and history.step >= history.num_steps - 1
        return "last step" if is_last else None

    def change(self, observation: Observation) -> float:
        """What this step adds."""
        return batch_diff(observation.moved, observation.size, self.batch_rule)

    def decide(self, history: History, observation: Observation) -> Decision:
        before = history.memory if isinstance(history.memory, float) else 0.0
        assert self.threshold is not None
        return decide_by_total(before + self.change(observation), self.threshold)

    def remember(self, history: History, result: StepResult) -> object:
        (decision,) = result.decisions
        return decision.diff if decision.hit and decision.diff is not None else 0.0


def decide_by_total(total: float, threshold: float) -> Decision:
    """Reuse below the threshold; what was added up is the decision's diff. A total that isn't
    finite computes."""
    if not math.isfinite(total):
        return Decision(False, f"added up to {total}", total)
    if total < threshold:
        return Decision(True, f"hit, added up to {total:.3g}", total)
    return Decision(False, f"added up to {total:.3g} >= {threshold:g}", total)
