"""Error control: the interval to the next computed step is set as the step size of an ODE solver
is, from the error seen at this one, towards a tolerance.

At a computed step the driver has both what was computed and what a reuse would have given:

    step        0  1  2  3  .  5  .  .  8
    error e           .02   .06     .11       of the forecast that was not used
    gap         1  1  2  2     3     2        gap * clip(safety * tolerance / e, 1/2, 3/2)

On the steps between, the timestep alone is read; within `request(key)` with `num_inference_steps`
nothing. Where the path bends the error is large, and every step
computes: the warm-up comes by itself. All guidance branches of a request compute and reuse at the
same steps, by the error of the worst: guidance is a difference of two outputs, in which an error
that one of them alone has counts for several.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dit_cachegraph.policy.checks import check_int, check_number
from dit_cachegraph.policy.rule import Decision, History, Need, Observation, Rule, Span, StepResult

AS_THE_OTHER = "as the other guidance branch"
SAFETY = 0.9
SMALLEST_CHANGE, LARGEST_CHANGE = 0.5, 1.5


class Pace(NamedTuple):
    """The rule's memory: steps from one computed step to the next, not rounded, and when the next
    is due."""

    gap: float
    next_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorControl(Rule):
    """The options of error control."""

    name: ClassVar[str] = "error_control"
    threshold_option: ClassVar[str | None] = "error_tolerance"

    error_tolerance: float = 0.1
    """What a reuse may miss, as a share of the streams. Larger saves more and costs quality; 0
    never reuses."""

    max_gap: int = 8
    """At most so many steps from one computed step to the next."""

    min_error_steps: int = 2
    """Steps computed at first: a first-order forecast can be judged from the third step on."""

    def __post_init__(self) -> None:
        check_number("error_tolerance", self.error_tolerance)
        check_int("max_gap", self.max_gap, at_least=1)
        check_int("min_error_steps", self.min_error_steps, at_least=1)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CLOCK, Need.ERROR})

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(0, sum(list_sizes)),)

    def decide(self, history: History, observation: Observation) -> Decision:
        pace = history.memory
        if not isinstance(pace, Pace):
            return Decision(False, "error not known yet")
        for companion in observation.companions:
            if companion.decision is not None:
                return Decision(companion.decision.hit, AS_THE_OTHER)
            other = companion.memory
            if isinstance(other, Pace) and companion.step >= other.next_step:
                return Decision(
                    False, f"due on another guidance branch after {other.gap:.2g} steps"
                )
        if history.step >= pace.next_step:
            return Decision(False, f"due after {pace.gap:.2g} steps")
        return Decision(True, f"hit, next computed step is {pace.next_step}")

    def remember(self, history: History, result: StepResult) -> object:
        pace = history.memory if isinstance(history.memory, Pace) else None
        if any(decision.hit for decision in result.decisions):
            return pace
        gap = 1.0 if pace is None else pace.gap
        if result.error is None or history.step < self.min_error_steps:
            return Pace(1.0, history.step + 1)
        if result.error == result.error:  # noqa: PLR0124  # not NaN
            allowed = SAFETY * self.error_tolerance / max(result.error, 1e-12)
            gap *= min(max(allowed, SMALLEST_CHANGE), LARGEST_CHANGE)
        else:
            gap = 1.0
        gap = min(max(gap, 1.0), float(self.max_gap))
        return Pace(gap, history.step + round(gap))
