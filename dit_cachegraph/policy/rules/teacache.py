"""TeaCache (arXiv 2411.19108): reuse until the modulated input of the first block has moved enough.

From each step to the next, reused ones too, the relative L1 difference of that input goes through a
polynomial that was fitted on the model, and adds up; at the threshold the step computes, and the
sum begins anew. The first step computes, and the last one where `num_inference_steps` says which
that is.

Fitted coefficients belong to one model: without any, the difference is taken as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.checks import check_number, check_numbers
from dit_cachegraph.policy.diffs import batch_diff
from dit_cachegraph.policy.rule import Observation, Probe, ProbeKind, Span
from dit_cachegraph.policy.rules.accumulated import AddsUp


@dataclass(frozen=True, slots=True, kw_only=True)
class TeaCache(AddsUp):
    """The options of TeaCache."""

    name: ClassVar[str] = "teacache"

    teacache_threshold: float = 0.2
    """Reuse while what has been added up is below this. Higher saves more and costs quality."""

    teacache_coefficients: tuple[float, ...] = (1.0, 0.0)
    """The polynomial, the highest power first."""

    def __post_init__(self) -> None:
        check_number("teacache_threshold", self.teacache_threshold)
        coefficients = check_numbers("teacache_coefficients", self.teacache_coefficients)
        object.__setattr__(self, "teacache_coefficients", coefficients)
        AddsUp.__post_init__(self)

    @property
    def threshold(self) -> float:
        return self.teacache_threshold

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(0, sum(list_sizes), Probe(ProbeKind.MODULATED_INPUT)),)

    def change(self, observation: Observation) -> float:
        diff = batch_diff(observation.moved, observation.size, self.batch_rule)
        value, *others = self.teacache_coefficients
        for coefficient in others:
            value = value * diff + coefficient
        return value
