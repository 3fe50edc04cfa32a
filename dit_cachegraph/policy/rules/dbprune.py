"""DBPrune: each block decides for itself, by how far its input is from that of the step at which it
was last computed.

    blocks   0 .. Fn-1 | Fn  Fn+1 ...  each: reuse its own residual, or run | N-Bn .. N-1

The meaning and the names of the options are cache-dit's. A decision depends on those before it in
the step, so each costs a small copy of its own. Where cache-dit is wrong by its own words this is
right: a limit on reused steps never ends the reuse in the middle of a step, and blocks named by
number are those of this model alone. A bound on the accumulated diff adds a step's mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_bool, check_ids, check_number
from dit_cachegraph.policy.rule import Decision, History, Observation, Probe, ProbeKind, Span
from dit_cachegraph.policy.rules.dbcache import DBCache, by_threshold

NUM_DIFFS_AVERAGED = 5
REDUCED_BY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DBPrune(DBCache):
    """The options of DBPrune: those of DBCache, and these."""

    name: ClassVar[str] = "dbprune"

    enable_dynamic_prune_threshold: bool = False
    """Let the threshold follow the differences of the blocks before it in the step: their mean (of
    the first five) times `dynamic_prune_threshold_relax_ratio`, never below the threshold itself.
    """

    max_dynamic_prune_threshold: float | None = None
    """From here on the dynamic threshold is not used. None: twice the threshold."""

    dynamic_prune_threshold_relax_ratio: float = 1.25
    """What the mean is multiplied by."""

    non_prune_block_ids: tuple[int, ...] = ()
    """Blocks that always run, beside the first and the last ones; counted from 0."""

    force_reduce_calibrator_vram: bool = False
    """Keep only every fourth channel of the inputs to compare with."""

    def __post_init__(self) -> None:
        # A dataclass with slots is made anew, so `super()` would name another class.
        DBCache.__post_init__(self)
        if self.Bn_compute_blocks_ids is not None:
            raise InvalidConfig(
                "Bn_compute_blocks_ids is an option of DBCache alone, leave it out: DBPrune runs "
                "the last Bn_compute_blocks, and each block before them decides for itself. Lower "
                "Bn_compute_blocks, and name those that always run in non_prune_block_ids"
            )
        check_bool("enable_dynamic_prune_threshold", self.enable_dynamic_prune_threshold)
        check_bool("force_reduce_calibrator_vram", self.force_reduce_calibrator_vram)
        bound, ratio = self.max_dynamic_prune_threshold, self.dynamic_prune_threshold_relax_ratio
        check_number("max_dynamic_prune_threshold", bound, none_is_ok=True)
        check_number("dynamic_prune_threshold_relax_ratio", ratio)
        ids = check_ids("non_prune_block_ids", self.non_prune_block_ids)
        object.__setattr__(self, "non_prune_block_ids", ids or ())

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        num_blocks = sum(list_sizes)
        first, last = self.num_first_blocks(num_blocks), num_blocks - self.Bn_compute_blocks
        if first > last:
            raise InvalidConfig(
                f"Fn_compute_blocks={first} + Bn_compute_blocks={self.Bn_compute_blocks} is more "
                f"than the {num_blocks} blocks of this model: lower one of them"
            )
        for i in self.non_prune_block_ids:
            if i >= num_blocks:
                known = f"this model has the blocks 0 to {num_blocks - 1}"
                raise InvalidConfig(f"non_prune_block_ids has {i}, and {known}")
        every = self.downsample_factor
        if self.force_reduce_calibrator_vram:
            every = max(every, REDUCED_BY)
        probe = Probe(ProbeKind.HIDDEN, every, self.important_condition_threshold)
        pruned = (i for i in range(first, last) if i not in self.non_prune_block_ids)
        return tuple(Span(i, i + 1, probe) for i in pruned)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        return self._why_known(history, noise)

    def decide(self, history: History, observation: Observation) -> Decision:
        if self._is_static:
            return Decision(True, "hit mask")
        return by_threshold(self._diff(observation), self._threshold_after(observation.earlier))

    def _threshold_after(self, earlier: Sequence[Decision]) -> float:
        if self.threshold >= 1:  # Which reuses whatever moved.
            return math.inf
        diffs = [d.diff for d in earlier if d.is_recorded and d.diff is not None and d.diff > 0]
        if not self.enable_dynamic_prune_threshold or not diffs:
            return self.threshold
        averaged = diffs[:NUM_DIFFS_AVERAGED]
        relaxed = self.dynamic_prune_threshold_relax_ratio * sum(averaged) / len(averaged)
        bound = self.max_dynamic_prune_threshold
        bound = 2 * self.threshold if bound is None else bound
        return max(relaxed, self.threshold) if relaxed < bound else self.threshold
