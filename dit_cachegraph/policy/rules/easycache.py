"""EasyCache (arXiv 2507.02860): forecast how far the output moves from how far the input does.

    k = |o - o'| / |x - x'|                   at a computed step, against the one computed before it
    E = sum of k |x_t - x_(t-1)| / |o|        over the steps since, with `o` as last computed

with the model's input `x` and output `o` in L1. A step is reused while E is below the threshold;
when one computes, E begins anew. The first steps compute, and the last one where
`num_inference_steps` says which that is. Each guidance branch decides for itself.

Checked against descriptions of the paper and of its code, neither of which was at hand: the sum,
its `k` from the last two computed steps, and that it needs the input alone. Otherwise than there: a
reuse replays what the blocks added, and not output less input; both passes of guidance, which share
the first one's decision there, decide each for itself. Not checked: the default threshold and the
number of first steps, for which no source was at hand (ComfyUI's node of this name begins at 0.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from dit_cachegraph.policy.checks import check_number
from dit_cachegraph.policy.diffs import batch_diff, worst_sample
from dit_cachegraph.policy.rule import (
    Change,
    Decision,
    History,
    Need,
    Observation,
    Probe,
    ProbeKind,
    Span,
    StepResult,
)
from dit_cachegraph.policy.rules.accumulated import AddsUp, decide_by_total


class Forecast(NamedTuple):
    """The rule's memory on reused steps: E, and how the output moved with the input before."""

    total: float
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class EasyCache(AddsUp):
    """The options of EasyCache."""

    name: ClassVar[str] = "easycache"

    easycache_threshold: float = 0.05
    """Reuse while the forecast change of the output is below this share of it. Higher saves more
    and costs quality."""

    max_warmup_steps: int = 5
    """The first steps of an image, always computed."""

    def __post_init__(self) -> None:
        check_number("easycache_threshold", self.easycache_threshold)
        AddsUp.__post_init__(self)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.DIFF, Need.OUTPUT})

    @property
    def threshold(self) -> float:
        return self.easycache_threshold

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(0, sum(list_sizes), Probe(ProbeKind.LATENTS)),)

    def decide(self, history: History, observation: Observation) -> Decision:
        change = self._change(history, observation)
        if change is None:
            return Decision(False, "the output's change is not known yet")
        before = history.memory.total if isinstance(history.memory, Forecast) else 0.0
        total = before + self._forecast(change, observation)
        return decide_by_total(total, self.easycache_threshold)

    def remember(self, history: History, result: StepResult) -> object:
        (decision,), change = result.decisions, self._change(history, result.seen)
        if not decision.hit or decision.diff is None or change is None:
            return None
        return Forecast(decision.diff, change)

    def sample_of(self, history: History, observation: Observation) -> int | None:
        change = self._change(history, observation)
        return None if change is None else worst_sample(*self._moves(change, observation), "max")

    def _change(self, history: History, observation: Observation) -> Change | None:
        """Just measured, where the last step computed; else as it was then."""
        known = history.memory.change if isinstance(history.memory, Forecast) else None
        return observation.change or known

    def _forecast(self, change: Change, observation: Observation) -> float:
        return batch_diff(*self._moves(change, observation), "max")

    def _moves(
        self, change: Change, observation: Observation
    ) -> tuple[Sequence[float], Sequence[float]]:
        """How far the output moves, and its size, of each sample; or of all as one."""
        (input_moved, _), (output_moved, output_size) = change
        moved = observation.moved
        if self.batch_rule == "mean" or len(moved) != len(output_moved):
            input_moved, moved = (sum(input_moved),), (sum(moved),)
            output_moved, output_size = (sum(output_moved),), (sum(output_size),)
        ratio = [o * m for o, m in zip(output_moved, moved, strict=True)]
        scale = [i * s for i, s in zip(input_moved, output_size, strict=True)]
        return ratio, scale
