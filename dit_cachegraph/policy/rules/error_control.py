"""Error control: the interval to the next computed step is set as the step size of an ODE solver
is, from the error seen at this one, towards a tolerance.

At a computed step the driver has both what was computed and what a reuse would have given:

    step        0  1  2  3  .  5  .  .  8
    error e           .02   .06     .11       of the forecast that was not used
    gap         1  1  2  2     3     2        gap * clip(safety * tolerance / e, 1/2, 3/2)

Paced over noise, gaps are parts of the noise range, and the error counts times the part that it is
over (`dit_cachegraph.policy.pace` says why).

On the steps between, the timestep alone is read; within `request(key)` with `num_inference_steps`
nothing, where steps are counted. Where the path bends the error is large, and every step
computes: the warm-up comes by itself. All guidance branches of a request compute and reuse at the
same steps, by the error of the worst: guidance is a difference of two outputs, in which an error
that one of them alone has counts for several.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_cachegraph.policy.checks import check_choice, check_int, check_number
from dit_cachegraph.policy.diffs import BATCH_RULES, BatchRule
from dit_cachegraph.policy.pace import (
    NOISE_POWER,
    NOISE_UNIT,
    SAFETY,
    NoisePace,
    Pace,
    changed,
    level_of,
    tells_no_noise,
)
from dit_cachegraph.policy.rule import Decision, History, Need, Observation, Rule, Span, StepResult

AS_THE_OTHER = "as the other guidance branch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorControl(Rule):
    """The options of error control."""

    name: ClassVar[str] = "error_control"
    threshold_option: ClassVar[str | None] = "error_tolerance"

    error_tolerance: float = 0.1
    """What a reuse may miss, as a share of the streams; paced over noise, what it may miss over a
    tenth of the noise range. Larger saves more and costs quality; 0 never reuses."""

    paced_over: Literal["steps", "noise"] = "steps"
    """What gaps and errors are measured by: steps, or the noise that they take away, as shifted
    schedules need it."""

    max_gap: int = 8
    """At most so many steps from one computed step to the next."""

    min_error_steps: int = 2
    """Steps computed at first: a first-order forecast can be judged from the third step on."""

    batch_rule: BatchRule = "max"
    """How the samples of a batch decide together: by the one that would miss most ("max"), or by
    what they would miss on average ("mean"); "per_sample" takes batches of `requests` alone."""

    def __post_init__(self) -> None:
        check_number("error_tolerance", self.error_tolerance)
        check_choice("paced_over", self.paced_over, ("steps", "noise"))
        check_int("max_gap", self.max_gap, at_least=1)
        check_int("min_error_steps", self.min_error_steps, at_least=1)
        check_choice("batch_rule", self.batch_rule, BATCH_RULES)

    @property
    def needs(self) -> frozenset[Need]:
        known = frozenset({Need.CLOCK, Need.ERROR})
        return known | {Need.NOISE} if self.paced_over == "noise" else known

    @property
    def error_batch_rule(self) -> BatchRule:
        return self.batch_rule

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(0, sum(list_sizes)),)

    def decide(self, history: History, observation: Observation) -> Decision:
        pace = history.memory
        if not isinstance(pace, Pace | NoisePace):
            return Decision(False, "error not known yet")
        level = level_of(history, observation.noise)
        for companion in observation.companions:
            if companion.decision is not None:
                return Decision(companion.decision.hit, AS_THE_OTHER)
            other = companion.memory
            if isinstance(other, type(pace)) and other.is_due(companion.step, level):
                return Decision(False, f"due on another guidance branch after {other}")
        if pace.is_due(history.step, level):
            return Decision(False, f"due after {pace}")
        return Decision(True, f"hit, {pace.until}")

    def remember(self, history: History, result: StepResult) -> object:
        pace = history.memory if isinstance(history.memory, Pace | NoisePace) else None
        level = level_of(history, result.seen.noise)
        if any(decision.hit for decision in result.decisions):
            return None if pace is None else pace.seen_at(level)
        if self.paced_over == "noise":
            over_noise = pace if isinstance(pace, NoisePace) else None
            next_pace = self._pace_over_noise(over_noise, history.step, level, result.error)
            is_counted = tells_no_noise(result.seen.noise)
            return next_pace._replace(
                is_counted=is_counted if over_noise is None else over_noise.is_counted
            )
        over_steps = pace if isinstance(pace, Pace) else None
        return self._pace_over_steps(over_steps, history.step, result.error)

    def _pace_over_steps(self, before: Pace | None, step: int, error: float | None) -> Pace:
        if error is None or step < self.min_error_steps:
            return Pace(1.0, step + 1)
        gap = 1.0 if before is None else before.gap
        if error == error:  # noqa: PLR0124  # not NaN
            gap *= changed(SAFETY * self.error_tolerance / max(error, 1e-12))
        else:
            gap = 1.0
        gap = min(max(gap, 1.0), float(self.max_gap))
        return Pace(gap, step + round(gap))

    def _pace_over_noise(
        self, before: NoisePace | None, step: int, level: float, error: float | None
    ) -> NoisePace:
        at_once = NoisePace(0.0, level, level, step + self.max_gap, is_counted=False)
        if before is None or error is None or step < self.min_error_steps:
            return at_once
        if not math.isfinite(error) or self.error_tolerance == 0:
            return at_once
        distance = before.computed_at - level
        missed = max(error * distance / NOISE_UNIT, 1e-12)
        allowed = SAFETY * self.error_tolerance / missed
        gap = max(before.gap, distance) * changed(allowed**NOISE_POWER)
        return at_once._replace(gap=gap)
