"""What a rule and a predictor would have done on a recorded run.

The rule's own code decides, on the recorded probes; what its reuse would have missed is measured on
the recorded effects. The run itself computed every step, so that what an error does to the steps
after it is left out: real runs tell that.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph.policy.diffs import BatchRule, batch_diff
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.rule import Decision, History, Observation, Rule, StepResult, Sums


class Simulated(NamedTuple):
    """Per step: the decision, and what a reuse would have missed, as a share of the streams; None
    for steps that compute."""

    decisions: tuple[Decision, ...]
    errors: tuple[float | None, ...]

    @property
    def num_reused(self) -> int:
        return sum(decision.hit for decision in self.decisions)

    @property
    def mean_error(self) -> float:
        errors = [error for error in self.errors if error is not None]
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def largest_error(self) -> float:
        return max((error for error in self.errors if error is not None), default=0.0)


def simulate(
    rule: Rule,
    predictor: Predictor,
    recording: Sequence[Recorded],
    num_steps: int | None = None,
) -> Simulated:
    """Go through a recorded run of one region with `rule` and `predictor`. `num_steps` is what
    `num_inference_steps` says."""
    history, decisions, errors = History().seen_by(rule, num_steps), [], []
    computed: list[int] = []
    for step, now in enumerate(recording):
        if rule.forgets(history, ()):
            computed = []
        seen = _observation(now, recording[computed[-1]]) if computed else Observation()
        seen = seen._replace(noise=now.noise)
        reason = rule.why_compute(history, (), now.noise) or (None if computed else "new image")
        decision = Decision(False, reason) if reason else rule.decide(history, seen)
        error = _error(recording, computed, step, predictor, rule.error_batch_rule)
        errors.append(error if decision.hit else None)
        if not decision.hit:
            computed.append(step)
        result = StepResult((decision,), seen, None if decision.hit else error)
        memory = rule.remember(history, result)
        history = history.after((decision,), memory=memory)
        decisions.append(decision)
    return Simulated(tuple(decisions), tuple(errors))


def _observation(now: Recorded, before: Recorded) -> Observation:
    if now.probe is None or before.probe is None:
        return Observation()
    sums = _sums([now.probe - before.probe], [before.probe])
    return Observation(sums.moved, sums.size)


def _error(
    recording: Sequence[Recorded],
    computed: Sequence[int],
    step: int,
    predictor: Predictor,
    batch_rule: BatchRule,
) -> float | None:
    """What the estimate at `step` from the last computed steps misses; None where none did."""
    if not computed:
        return None
    steps = computed[-predictor.num_snapshots :]
    weights = predictor.weights(steps, step)
    missed = []
    for i, effect in enumerate(recording[step].effects):
        # Of three dimensions, so that each sample is fitted by itself as in a run.
        snapshots = [recording[s].effects[i][:, None] for s in steps]
        estimate = predictor.estimate(snapshots, steps, step)
        if estimate is None:
            pairs = zip(snapshots, weights, strict=True)
            estimate = torch.stack([s * w for s, w in pairs]).sum(0)
        missed.append(effect - estimate[:, 0])
    return batch_diff(*_sums(missed, recording[step].outs), batch_rule)


def _sums(moved: Sequence[Tensor], size: Sequence[Tensor]) -> Sums:
    """Over all streams, per sample; what is of no sample counts for each."""
    totals = [sum(x.double().abs().sum(1) for x in xs) for xs in (moved, size)]
    on_host = [torch.as_tensor(total, device="cpu") for total in totals]
    moved_sums, size_sums = (total.reshape(-1).tolist() for total in on_host)
    return Sums(tuple(moved_sums), tuple(size_sums))
