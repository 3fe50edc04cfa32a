"""What rules share that add up changes from step to step, and compute once they reach a bound.

    step        0    1    2    3    4    5
    change           .1   .1   .2   .1   .1
    added up    .    .1   .2   .    .1   .2      bound .3: steps 0 and 3 compute

The rule's memory is what has been added up since the last computed step.
"""

import math

from dit_cachegraph.policy.rule import Decision, History, StepResult


def why_first_or_last(history: History, max_warmup_steps: int) -> str | None:
    """The first steps compute, and the last one where the number of steps is known."""
    if history.step < max_warmup_steps:
        return "warmup"
    is_last = history.num_steps is not None and history.step >= history.num_steps - 1
    return "last step" if is_last else None


def decide_by_total(history: History, change: float, threshold: float) -> Decision:
    """Reuse below the threshold; what was added up is the decision's diff. A total that isn't
    finite computes."""
    before = history.memory if isinstance(history.memory, float) else 0.0
    total = before + change
    if not math.isfinite(total):
        return Decision(False, f"added up to {total}", total)
    if total < threshold:
        return Decision(True, f"hit, added up to {total:.3g}", total)
    return Decision(False, f"added up to {total:.3g} >= {threshold:g}", total)


def total_after(result: StepResult) -> float:
    """The memory after a step: nothing is added up where it computed."""
    (decision,) = result.decisions
    return decision.diff if decision.hit and decision.diff is not None else 0.0
