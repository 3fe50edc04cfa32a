"""DBCache: reuse while the residual of the first `Fn` blocks stays close to that of the last
computed step. FBCache is `Fn_compute_blocks=1, Bn_compute_blocks=0`.

The meaning and the names of the options are cache-dit's; where that is wrong by its own words
(a mask that ends early, a hit with nothing kept, `Fn + Bn > N`), this is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_choice, check_int, check_mask, check_number
from dit_cachegraph.policy.rule import Decision, History, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class DBCacheConfig:
    """The options of DBCache."""

    Fn_compute_blocks: int | None = None
    """First blocks that always run; their residual is the probe. More is safer and saves less.
    None: 8, but never more than a quarter of the blocks."""

    Bn_compute_blocks: int = 0
    """Last blocks that always run, on the reused value. More is safer and saves less."""

    residual_diff_threshold: float = 0.08
    """Reuse below this relative L1 difference. Higher saves more and costs quality; 0 never
    reuses, 1 or more always does."""

    max_accumulated_residual_diff_threshold: float | None = None
    """No reuse for the rest of an image once the differences seen add up to this."""

    max_warmup_steps: int = 8
    """The first steps of an image, always computed."""

    warmup_interval: int = 1
    """Compute only every so many steps of the warm-up; the others may be reused."""

    max_cached_steps: int = -1
    """At most so many reused steps an image; -1 for no limit."""

    max_continuous_cached_steps: int = -1
    """At most so many reused steps in a row; -1 for no limit."""

    steps_computation_mask: tuple[int, ...] | None = None
    """One 0 or 1 a step: 1 computes. Steps past its end compute."""

    steps_computation_policy: Literal["dynamic", "static"] = "dynamic"
    """What a 0 of the mask means: "dynamic" asks the threshold, "static" reuses."""

    batch_rule: Literal["max", "mean"] = "max"
    """How the samples of a batch decide together: "max" reuses only if every sample may (its
    neighbours never cost a sample quality), "mean" by their average, as cache-dit does."""

    def __post_init__(self) -> None:
        check_int("Fn_compute_blocks", self.Fn_compute_blocks, at_least=1, none_is_ok=True)
        check_int("Bn_compute_blocks", self.Bn_compute_blocks, at_least=0)
        check_number("residual_diff_threshold", self.residual_diff_threshold)
        check_number(
            "max_accumulated_residual_diff_threshold",
            self.max_accumulated_residual_diff_threshold,
            none_is_ok=True,
        )
        check_int("max_warmup_steps", self.max_warmup_steps, at_least=0)
        check_int("warmup_interval", self.warmup_interval, at_least=1)
        check_int("max_cached_steps", self.max_cached_steps, at_least=-1)
        check_int("max_continuous_cached_steps", self.max_continuous_cached_steps, at_least=-1)
        check_choice(
            "steps_computation_policy", self.steps_computation_policy, ("dynamic", "static")
        )
        check_choice("batch_rule", self.batch_rule, ("max", "mean"))
        mask = check_mask("steps_computation_mask", self.steps_computation_mask)
        object.__setattr__(self, "steps_computation_mask", mask)

    @property
    def needs_diff(self) -> bool:
        return self.steps_computation_mask is None or self.steps_computation_policy == "dynamic"

    @property
    def threshold(self) -> float:
        return self.residual_diff_threshold

    def region(self, num_blocks: int) -> tuple[int, int]:
        first = self.num_first_blocks(num_blocks)
        if first + self.Bn_compute_blocks > num_blocks:
            raise InvalidConfig(
                f"Fn_compute_blocks={first} + Bn_compute_blocks={self.Bn_compute_blocks} is more "
                f"than the {num_blocks} blocks of this model: lower one of them"
            )
        return first, num_blocks - self.Bn_compute_blocks

    def num_first_blocks(self, num_blocks: int) -> int:
        """`Fn_compute_blocks`, or what None stands for with so many blocks."""
        if self.Fn_compute_blocks is not None:
            return self.Fn_compute_blocks
        return max(1, min(8, num_blocks // 4))

    def decide(self, history: History, observation: Observation) -> Decision:
        reason = self._why_compute(history)
        if reason is not None:
            return Decision(False, reason)
        mask = self.steps_computation_mask
        is_static = mask is not None and self.steps_computation_policy == "static"
        if is_static and observation.nothing_kept is None:
            return Decision(True, "hit mask")
        limit = None if is_static else self._why_limited(history)
        if limit is not None or observation.nothing_kept is not None:
            return Decision(False, limit or observation.nothing_kept or "")
        return self._by_diff(observation)

    def _why_compute(self, history: History) -> str | None:
        step, mask = history.step, self.steps_computation_mask
        warmup = self.max_warmup_steps
        if mask is not None:
            warmup = min(warmup, _num_leading_ones(mask))
        if step < warmup and step % self.warmup_interval == 0:
            return "warmup"
        if mask is not None and step >= len(mask):
            return f"past the mask's {len(mask)} steps"
        if mask is not None and mask[step] == 1:
            return "mask"
        return None

    def _why_limited(self, history: History) -> str | None:
        bound = self.max_accumulated_residual_diff_threshold
        if 0 <= self.max_cached_steps <= history.num_hits:
            return f"max_cached {self.max_cached_steps}"
        if 0 <= self.max_continuous_cached_steps <= history.num_hits_in_a_row:
            return f"max_continuous {self.max_continuous_cached_steps}"
        if bound is not None and history.accumulated_diff >= bound:
            return f"accumulated diff {history.accumulated_diff:.3g} >= {bound:g}"
        if self.residual_diff_threshold <= 0:
            return "threshold 0"
        return None

    def _by_diff(self, observation: Observation) -> Decision:
        diff = batch_diff(observation.moved, observation.size, self.batch_rule)
        threshold = self.residual_diff_threshold
        if not math.isfinite(diff):
            return Decision(False, f"diff is {diff}", diff)
        if threshold >= 1:
            return Decision(True, "hit, threshold >= 1", diff)
        if diff < threshold:
            return Decision(True, f"hit {diff:.3g}", diff, is_recorded=True)
        return Decision(False, f"diff {diff:.3g} >= {threshold:g}", diff, is_recorded=True)


def batch_diff(moved: Sequence[float], size: Sequence[float], rule: str) -> float:
    """Relative L1 difference of a batch from its samples' `sum|r - p|` and `sum|p|`. Not finite
    where any sample isn't, or where what it is compared with is zero."""
    if rule == "mean":
        return _ratio(sum(moved), sum(size))
    ratios = [_ratio(m, s) for m, s in zip(moved, size, strict=True)]
    # `max` ignores a NaN that doesn't come first.
    return math.nan if any(math.isnan(r) for r in ratios) else max(ratios)


def _ratio(moved: float, size: float) -> float:
    if not math.isfinite(size):
        return math.nan
    if size == 0:
        return math.nan if moved == 0 or math.isnan(moved) else math.inf
    return moved / size


def _num_leading_ones(mask: Sequence[int]) -> int:
    return next((i for i, value in enumerate(mask) if value == 0), len(mask))
