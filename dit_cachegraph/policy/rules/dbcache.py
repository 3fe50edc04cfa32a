"""DBCache: reuse while the residual of the first `Fn` blocks stays close to that of the last
computed step. FBCache is `Fn_compute_blocks=1, Bn_compute_blocks=0`.

The meaning and the names of the options are cache-dit's; where that is wrong by its own words
(a mask that ends early, a hit with nothing kept, `Fn + Bn > N`), this is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import (
    check_bool,
    check_choice,
    check_ids,
    check_int,
    check_mask,
    check_number,
    check_share,
)
from dit_cachegraph.policy.diffs import BATCH_RULES, BatchRule, batch_diff, worst_sample
from dit_cachegraph.policy.rule import (
    Decision,
    History,
    Need,
    Observation,
    Probe,
    ProbeKind,
    Rule,
    Span,
    StepResult,
)

POLICIES = ("dynamic", "static")
REFRESH = ("once", "repeat")


@dataclass(frozen=True, slots=True, kw_only=True)
class DBCache(Rule):
    """The options of DBCache."""

    name: ClassVar[str] = "dbcache"
    threshold_option: ClassVar[str | None] = "residual_diff_threshold"

    Fn_compute_blocks: int | None = None
    """First blocks that always run; their residual is the probe. More is safer and saves less.
    None: 8, but never more than a quarter of the blocks."""

    Bn_compute_blocks: int = 0
    """Last blocks that always run, on the reused value. More is safer and saves less."""

    shrinks_to_fit: bool = False
    """Where `Fn_compute_blocks` leaves no block to skip, take what None stands for."""

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
    """One 0 or 1 a step, as `steps_mask` makes them: 1 computes. Steps past its end compute."""

    steps_computation_policy: Literal["dynamic", "static"] = "dynamic"
    """What a 0 of the mask means: "dynamic" asks the threshold, "static" reuses."""

    mask_over: Literal["steps", "noise"] = "steps"
    """What the mask is laid over: "noise" spreads it over the noise range, so that image-to-image
    and a model that takes over half-way enter it where they are."""

    warmup_noise_fraction: float | None = None
    """Instead of `max_warmup_steps`: compute while the timestep is in this first part of the noise
    range, 0 to 1. Image-to-image and a second expert don't warm up again."""

    force_refresh_step_hint: int | None = None
    """Begin anew at this step: nothing from before it is used any more, and warm-up, mask and the
    accumulated differences start over. Reused steps are counted on."""

    force_refresh_step_policy: Literal["once", "repeat"] = "once"
    """Whether that happens once, or every so many steps."""

    batch_rule: BatchRule = "max"
    """How the samples of a batch decide together: "max" reuses only if every sample may (its
    neighbours never cost a sample quality), "mean" by their average, as cache-dit does;
    "per_sample" takes batches of `requests` alone."""

    enable_separate_cfg: bool | None = None
    """Whether guidance calls the model once for each branch. It is seen either way: each branch has
    a state of its own, told by its conditioning."""

    cfg_compute_first: bool = False
    """Whether the branch without the prompt comes first. That is seen as well."""

    cfg_diff_compute_separate: bool = True
    """False: a branch goes by the difference of the one called before it at the same step."""

    l1_hidden_states_diff_threshold: float | None = None
    """Compare the stream after the first blocks, with this threshold, and not what they added."""

    important_condition_threshold: float = 0.0
    """Compare only tokens that moved by more than this, where there are any."""

    downsample_factor: int = 1
    """Compare every so many channels alone."""

    Bn_compute_blocks_ids: tuple[int, ...] | None = None
    """Which of the last `Bn_compute_blocks` run on a hit, counted from 0; None for all. Each other
    one is reused by itself, while its input is near that of the last computed step."""

    non_compute_blocks_diff_threshold: float = 0.08
    """How near that is."""

    def __post_init__(self) -> None:
        check_int("Fn_compute_blocks", self.Fn_compute_blocks, at_least=1, none_is_ok=True)
        check_int("Bn_compute_blocks", self.Bn_compute_blocks, at_least=0)
        check_bool("shrinks_to_fit", self.shrinks_to_fit)
        self._check_thresholds()
        check_int("max_warmup_steps", self.max_warmup_steps, at_least=0)
        check_int("warmup_interval", self.warmup_interval, at_least=1)
        check_int("max_cached_steps", self.max_cached_steps, at_least=-1)
        check_int("max_continuous_cached_steps", self.max_continuous_cached_steps, at_least=-1)
        hint = self.force_refresh_step_hint
        check_int("force_refresh_step_hint", hint, at_least=1, none_is_ok=True)
        check_choice("force_refresh_step_policy", self.force_refresh_step_policy, REFRESH)
        check_choice("steps_computation_policy", self.steps_computation_policy, POLICIES)
        check_choice("mask_over", self.mask_over, ("steps", "noise"))
        check_choice("batch_rule", self.batch_rule, BATCH_RULES)
        check_int("downsample_factor", self.downsample_factor, at_least=1)
        if self.enable_separate_cfg is not None:
            check_bool("enable_separate_cfg", self.enable_separate_cfg)
        check_bool("cfg_compute_first", self.cfg_compute_first)
        check_bool("cfg_diff_compute_separate", self.cfg_diff_compute_separate)
        mask = check_mask("steps_computation_mask", self.steps_computation_mask)
        object.__setattr__(self, "steps_computation_mask", mask)
        ids = self.Bn_compute_blocks_ids
        is_none = ids is None or (isinstance(ids, Sequence) and not ids)
        if not is_none and not self.Bn_compute_blocks:
            raise InvalidConfig(
                "Bn_compute_blocks_ids must be among the last Bn_compute_blocks, which are none "
                f"(say beside it how many there are), got {self.Bn_compute_blocks_ids!r}"
            )
        ids = check_ids("Bn_compute_blocks_ids", ids, self.Bn_compute_blocks)
        object.__setattr__(self, "Bn_compute_blocks_ids", ids)

    def _check_thresholds(self) -> None:
        check_number("residual_diff_threshold", self.residual_diff_threshold)
        check_number("non_compute_blocks_diff_threshold", self.non_compute_blocks_diff_threshold)
        check_number("important_condition_threshold", self.important_condition_threshold)
        for name, value in (
            (
                "max_accumulated_residual_diff_threshold",
                self.max_accumulated_residual_diff_threshold,
            ),
            ("l1_hidden_states_diff_threshold", self.l1_hidden_states_diff_threshold),
        ):
            check_number(name, value, none_is_ok=True)
        check_share("warmup_noise_fraction", self.warmup_noise_fraction, none_is_ok=True)

    @property
    def needs(self) -> frozenset[Need]:
        known = ((Need.DIFF, self._compares), (Need.NOISE, self._goes_by_noise))
        return frozenset([need for need, is_needed in known if is_needed])

    @property
    def _compares(self) -> bool:
        ids, num_last = self.Bn_compute_blocks_ids, self.Bn_compute_blocks
        decide_alone = ids is not None and len(set(ids)) < num_last
        return decide_alone or not self._is_static

    @property
    def _is_static(self) -> bool:
        """True where a mask alone says what is reused, but for blocks that decide alone."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"

    @property
    def _goes_by_noise(self) -> bool:
        is_mask_over_noise = self.steps_computation_mask is not None and self.mask_over == "noise"
        return is_mask_over_noise or self.warmup_noise_fraction is not None

    @property
    def threshold(self) -> float:
        hidden = self.l1_hidden_states_diff_threshold
        return self.residual_diff_threshold if hidden is None else hidden

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        num_blocks = sum(list_sizes)
        first, num_last = self.num_first_blocks(num_blocks), self.Bn_compute_blocks
        if first + num_last > num_blocks:
            raise InvalidConfig(
                f"Fn_compute_blocks={first} + Bn_compute_blocks={num_last} is more "
                f"than the {num_blocks} blocks of this model: lower one of them"
            )
        last = num_blocks - num_last
        ids = range(num_last) if self.Bn_compute_blocks_ids is None else self.Bn_compute_blocks_ids
        # They are reused on a hit, and without a block between there is none.
        alone = [last + i for i in range(num_last) if i not in ids and first < last]
        hidden = Probe(ProbeKind.HIDDEN)
        return (Span(first, last, self._probe()), *(Span(i, i + 1, hidden) for i in alone))

    def _probe(self) -> Probe:
        is_hidden = self.l1_hidden_states_diff_threshold is not None
        kind = ProbeKind.HIDDEN if is_hidden else ProbeKind.RESIDUAL
        return Probe(kind, self.downsample_factor, float(self.important_condition_threshold))

    def num_first_blocks(self, num_blocks: int) -> int:
        """`Fn_compute_blocks`, or what None stands for with so many blocks."""
        first = self.Fn_compute_blocks
        leaves_none = first is not None and first + self.Bn_compute_blocks >= num_blocks
        if first is None or (self.shrinks_to_fit and leaves_none):
            return max(1, min(8, num_blocks // 4))
        return first

    def forgets(self, history: History, earlier: Sequence[Decision]) -> bool:
        return self._is_refreshed(history.step)

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        if earlier and not earlier[0].hit:
            return "the region before it computed"
        return self._why_known(history, noise)

    def decide(self, history: History, observation: Observation) -> Decision:
        if observation.earlier:
            return self._decide_alone(observation)
        return Decision(True, "hit mask") if self._is_static else self._by_diff(observation)

    def _why_known(self, history: History, noise: float | None) -> str | None:
        """Why the step computes, by the schedule and the limits."""
        scheduled = self._why_scheduled(history, noise)
        return scheduled or (None if self._is_static else self._why_limited(history))

    def _why_scheduled(self, history: History, noise: float | None) -> str | None:
        """Why the step computes whatever is seen of it: warm-up and mask."""
        step, mask = self._step_since_refresh(history.step), self.steps_computation_mask
        if self._is_refreshed(history.step):
            return "refresh"
        warmup = self._warmup(step, noise)
        if warmup is not None:
            return warmup
        return None if mask is None else self._by_mask(mask, step, noise)

    def _is_refreshed(self, step: int) -> bool:
        return step > 0 and self._step_since_refresh(step) == 0

    def _step_since_refresh(self, step: int) -> int:
        hint = self.force_refresh_step_hint
        if hint is None or step < hint:
            return step
        return step - hint if self.force_refresh_step_policy == "once" else step % hint

    def _warmup(self, step: int, noise: float | None) -> str | None:
        fraction, mask = self.warmup_noise_fraction, self.steps_computation_mask
        if fraction is not None and noise is not None:
            return "warmup" if noise > 1 - fraction else None
        warmup = self.max_warmup_steps
        if mask is not None and self.mask_over == "steps":
            warmup = min(warmup, _num_leading_ones(mask))
        return "warmup" if step < warmup and step % self.warmup_interval == 0 else None

    def _by_mask(self, mask: Sequence[int], step: int, noise: float | None) -> str | None:
        if self.mask_over == "noise" and noise is not None:
            step = min(int((1 - noise) * len(mask)), len(mask) - 1)
        if step >= len(mask):
            return f"past the mask's {len(mask)} steps"
        return "mask" if mask[step] == 1 else None

    def _why_limited(self, history: History) -> str | None:
        bound = self.max_accumulated_residual_diff_threshold
        if 0 <= self.max_cached_steps <= history.num_hits:
            return f"max_cached {self.max_cached_steps}"
        if 0 <= self.max_continuous_cached_steps <= history.num_hits_in_a_row:
            return f"max_continuous {self.max_continuous_cached_steps}"
        accumulated = history.accumulated_diff - _accumulated_before(history.memory)
        if bound is not None and accumulated >= bound:
            return f"accumulated diff {accumulated:.3g} >= {bound:g}"
        if self.threshold <= 0:
            return "threshold 0"
        return None

    def _by_diff(self, observation: Observation) -> Decision:
        diff = self._diff(observation)
        if self.threshold >= 1 and math.isfinite(diff):
            return Decision(True, "hit, threshold >= 1", diff)
        return by_threshold(diff, self.threshold)

    def _diff(self, observation: Observation) -> float:
        """Measured here, or where it is shared, by the guidance branch that was called before."""
        shared = self._shared_diff(observation)
        if shared is not None:
            return shared
        return batch_diff(observation.moved, observation.size, self.batch_rule)

    def _shared_diff(self, observation: Observation) -> float | None:
        decided = [c.decision.diff for c in observation.companions if c.decision is not None]
        return None if self.cfg_diff_compute_separate else next(iter(decided), None)

    def remember(self, history: History, result: StepResult) -> object:
        """What the differences had added up to at the last refresh."""
        return history.accumulated_diff if self._is_refreshed(history.step) else history.memory

    def sample_of(self, history: History, observation: Observation) -> int | None:
        if self._shared_diff(observation) is not None:
            return None
        return worst_sample(observation.moved, observation.size, self.batch_rule)

    def _decide_alone(self, observation: Observation) -> Decision:
        """One of the last blocks, on a hit."""
        decision = by_threshold(self._diff(observation), self.non_compute_blocks_diff_threshold)
        return decision._replace(is_recorded=False)


def _accumulated_before(memory: object) -> float:
    return memory if isinstance(memory, float) else 0.0


def by_threshold(diff: float, threshold: float) -> Decision:
    """Reuse below the threshold. A diff that isn't finite computes, whatever the threshold."""
    if not math.isfinite(diff):
        return Decision(False, f"diff is {diff}", diff)
    if diff < threshold:
        return Decision(True, f"hit {diff:.3g}", diff, is_recorded=True)
    return Decision(False, f"diff {diff:.3g} >= {threshold:g}", diff, is_recorded=True)


def _num_leading_ones(mask: Sequence[int]) -> int:
    return next((i for i, value in enumerate(mask) if value == 0), len(mask))
