"""MagCache (arXiv 2506.09045): a schedule from how the residual's size changes from step to step.

`mag_ratios[t]` is the size of the residual of all blocks at step t over that at step t - 1 (mean
over the tokens of the norms' ratio; 1 at step 0), measured on one uncached run of the model. For
steps reused in a row from t on, each costs what the residual has grown or shrunk since:

    step        0    1    2     3     4     5
    ratio       1    1.1  1.02  0.99  0.98  0.97
    product               1.02  1.01  0.99  .         |1 - product| adds up: .02 .03 .04
    threshold .05, K 3    hit   hit   hit   computes

Where an image has another number of steps than there are ratios, they are interpolated as the
authors do: by the nearest one. Both guidance branches go by the same ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_int, check_number, check_numbers, check_share
from dit_cachegraph.policy.rule import Decision, History, Observation, Schedule, StepResult


class Skipped(NamedTuple):
    """The rule's memory: of the steps reused in a row, how many, the product of their ratios, and
    the errors added up."""

    steps: int = 0
    product: float = 1.0
    error: float = 0.0

    def and_one_of(self, ratio: float) -> "Skipped":
        product = self.product * ratio
        return Skipped(self.steps + 1, product, self.error + abs(1 - product))


@dataclass(frozen=True, slots=True, kw_only=True)
class MagCache(Schedule):
    """The options of MagCache."""

    name: ClassVar[str] = "magcache"

    mag_ratios: tuple[float, ...] | None = None
    """One a step, as measured on this model; must be given."""

    magcache_threshold: float = 0.06
    """Reuse while the errors added up are at most this. Higher saves more and costs quality."""

    max_skip_steps: int = 3
    """At most so many reused steps in a row (K in the paper)."""

    retention_ratio: float = 0.2
    """The first share of the steps that always computes, 0 to 1."""

    def __post_init__(self) -> None:
        if self.mag_ratios is None:
            raise InvalidConfig(
                "magcache goes by mag_ratios, which differ from model to model: give one a step, "
                "as measured on an uncached run"
            )
        ratios = check_numbers("mag_ratios", self.mag_ratios)
        object.__setattr__(self, "mag_ratios", ratios)
        check_number("magcache_threshold", self.magcache_threshold)
        check_int("max_skip_steps", self.max_skip_steps, at_least=0)
        check_share("retention_ratio", self.retention_ratio)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        num_steps = self._num_steps(history)
        if history.step < int(self.retention_ratio * num_steps + 0.5):
            return "warmup"
        return f"past the {num_steps} steps" if history.step >= num_steps else None

    def decide(self, history: History, observation: Observation) -> Decision:
        skipped = self._with_this_step(history)
        if skipped.steps > self.max_skip_steps:
            return Decision(False, f"{self.max_skip_steps} reused in a row")
        if skipped.error > self.magcache_threshold:
            reason = f"errors add up to {skipped.error:.3g} > {self.magcache_threshold:g}"
            return Decision(False, reason)
        return Decision(True, f"hit, errors add up to {skipped.error:.3g}")

    def remember(self, history: History, result: StepResult) -> object:
        return self._with_this_step(history) if result.decisions[0].hit else None

    def _with_this_step(self, history: History) -> Skipped:
        skipped = history.memory if isinstance(history.memory, Skipped) else Skipped()
        return skipped.and_one_of(self._ratio(history))

    def _num_steps(self, history: History) -> int:
        assert self.mag_ratios is not None
        return history.num_steps or len(self.mag_ratios)

    def _ratio(self, history: History) -> float:
        """That of the current step, by the nearest one."""
        assert self.mag_ratios is not None
        last, num_steps = len(self.mag_ratios) - 1, self._num_steps(history)
        if num_steps == 1:
            return self.mag_ratios[last]
        return self.mag_ratios[round(history.step * (last / (num_steps - 1)))]
