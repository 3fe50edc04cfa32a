"""A fixed schedule: which steps compute is said beforehand, as `calibrate` and a report's
`as_config()` say it. The same decisions whatever the batch or the machine, and nothing to wait for.

    compute_mask=(1, 1, 1, 0, 0, 1, 0, 0)    0 1 2 . . 5 . .
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_mask
from dit_cachegraph.policy.rule import Decision, History, Observation, Schedule, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSchedule(Schedule):
    """The options of a fixed schedule."""

    name: ClassVar[str] = "fixed"

    compute_mask: tuple[int, ...] | None = None
    """One 0 or 1 a step: 1 computes. Steps past its end compute. Must be given."""

    fixed_region: tuple[int, int] | None = None
    """The blocks that a reused step skips, from the first to before the last; None for all."""

    def __post_init__(self) -> None:
        mask = check_mask("compute_mask", self.compute_mask)
        if mask is None:
            raise InvalidConfig(
                "a fixed schedule goes by compute_mask, a sequence of 0 and 1, one a step: give "
                "one, as dit_cachegraph.steps_mask(total_steps=...) makes it"
            )
        object.__setattr__(self, "compute_mask", mask)
        region = self.fixed_region
        if region is not None and not _is_region(region):
            raise InvalidConfig(
                f"fixed_region must be two block numbers, the smaller one first, got {region!r}"
            )
        object.__setattr__(self, "fixed_region", None if region is None else tuple(region))

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        start, stop = self.fixed_region or (0, sum(list_sizes))
        return (Span(start, stop),)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        assert self.compute_mask is not None
        if history.step >= len(self.compute_mask):
            return f"past the mask's {len(self.compute_mask)} steps"
        return "mask" if self.compute_mask[history.step] else None

    def decide(self, history: History, observation: Observation) -> Decision:
        return Decision(True, "hit mask")


def _is_region(region: object) -> bool:
    if not isinstance(region, Sequence) or len(region) != 2:
        return False
    start, stop = region
    return all(type(i) is int for i in region) and 0 <= start < stop
