"""DBCache, as one image does it alone: reuse while what the first blocks add is near enough to what
they added at the last computed step."""

from dataclasses import dataclass

from torch import Tensor

from support.explorer.dit import NUM_BLOCKS, ExploredDiT
from support.explorer.lone_image import (
    Inputs,
    LoneImage,
    Verdict,
    is_close,
    run_blocks,
    worst_ratio,
)


@dataclass(frozen=True)
class DBCacheRules:
    """The settings of one step, by the field's names."""

    enabled: bool = True
    Fn_compute_blocks: int = 1
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.3
    max_accumulated_residual_diff_threshold: float | None = None
    max_warmup_steps: int = 1
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    steps_computation_mask: tuple[int, ...] | None = None
    steps_computation_policy: str = "dynamic"
    batch_rule: str = "max"

    @property
    def region(self) -> range:
        return range(self.Fn_compute_blocks, NUM_BLOCKS - self.Bn_compute_blocks)

    @property
    def num_warmup_steps(self) -> int:
        mask = self.steps_computation_mask
        leading_ones = len(mask) if mask and 0 not in mask else (mask or (0,)).index(0)
        return self.max_warmup_steps if mask is None else min(self.max_warmup_steps, leading_ones)


@dataclass(frozen=True)
class _Kept:
    region: range
    probe: Tensor
    residual: Tensor


@dataclass
class _Half:
    """A step that has run its first blocks."""

    model: ExploredDiT
    inputs: Inputs
    temb: Tensor
    stream: Tensor
    probe: Tensor
    rules: DBCacheRules
    verdict: Verdict


class LoneDBCache(LoneImage):
    """It goes by itself, whatever its image's other passes do, and measures no error."""

    def __init__(self, passes: list[LoneImage]) -> None:
        super().__init__(passes)
        self.num_hits = 0
        self.num_hits_in_a_row = 0
        self.accumulated_diff = 0.0
        self._kept: _Kept | None = None
        self._half: _Half | None = None

    def look(self, model: ExploredDiT, inputs: Inputs, rules: DBCacheRules) -> Verdict:
        start, temb = model.enter(inputs["hidden_states"], inputs["timestep"], inputs["guidance"])
        stream = run_blocks(model, range(rules.region.start), start, temb, inputs)
        probe = stream - start
        verdict = self._decide(rules, probe)
        self._half = _Half(model, inputs, temb, stream, probe, rules, verdict)
        return verdict

    def may_replay(self) -> bool:
        half, kept = self._half, self._kept
        assert half is not None
        return self._fits(half.rules, half.probe) and kept is not None

    def give_up(self) -> None:
        self._half = None

    def settle(self, hit: bool, is_measured: bool) -> Tensor:
        half = self._half
        assert half is not None
        self._half = None
        region, stream = half.rules.region, half.stream
        if hit:
            assert self._kept is not None
            left = stream + self._kept.residual
        else:
            left = run_blocks(half.model, region, stream, half.temb, half.inputs)
            keeps = half.rules.enabled and len(region) > 0
            self._kept = _Kept(region, half.probe, left - stream) if keeps else None
        last = range(region.stop, NUM_BLOCKS)
        output = half.model.proj_out(run_blocks(half.model, last, left, half.temb, half.inputs))
        self._count(hit, is_measured, half)
        return output

    def _count(self, hit: bool, is_measured: bool, half: _Half) -> None:
        self.step += 1
        self.num_hits += hit
        self.num_hits_in_a_row = self.num_hits_in_a_row + 1 if hit else 0
        diff = half.verdict.diff
        if diff is not None and is_measured and half.rules.residual_diff_threshold < 1:
            self.accumulated_diff += diff

    def _fits(self, rules: DBCacheRules, probe: Tensor) -> bool:
        kept = self._kept
        return kept is not None and kept.region == rules.region and kept.probe.shape == probe.shape

    def _decide(self, rules: DBCacheRules, probe: Tensor) -> Verdict:
        mask, step = rules.steps_computation_mask, self.step
        if not rules.enabled:
            return Verdict(False, "disabled")
        if not rules.region:
            return Verdict(False, "empty region")
        if step < rules.num_warmup_steps and step % rules.warmup_interval == 0:
            return Verdict(False, "warm-up")
        if mask is not None and (step >= len(mask) or mask[step] == 1):
            return Verdict(False, "mask")
        if mask is not None and rules.steps_computation_policy == "static":
            fits = self._fits(rules, probe)
            return Verdict(fits, "mask" if fits else "nothing kept")
        return self._limited(rules) or self._by_diff(rules, probe)

    def _limited(self, rules: DBCacheRules) -> Verdict | None:
        if 0 <= rules.max_cached_steps <= self.num_hits:
            return Verdict(False, "max_cached")
        if 0 <= rules.max_continuous_cached_steps <= self.num_hits_in_a_row:
            return Verdict(False, "max_continuous")
        bound = rules.max_accumulated_residual_diff_threshold
        if bound is not None and self.accumulated_diff >= bound:
            return Verdict(False, "accumulated", is_close=is_close(self.accumulated_diff, bound))
        if rules.residual_diff_threshold <= 0:
            return Verdict(False, "threshold 0")
        return None

    def _by_diff(self, rules: DBCacheRules, probe: Tensor) -> Verdict:
        kept, threshold = self._kept, rules.residual_diff_threshold
        if kept is None or not self._fits(rules, probe):
            return Verdict(False, "nothing kept")
        diff = _diff(probe, kept.probe, rules.batch_rule)
        bound = rules.max_accumulated_residual_diff_threshold
        is_at_bound = bound is not None and is_close(self.accumulated_diff, bound)
        hit, unsure = threshold >= 1 or diff < threshold, is_at_bound or is_close(diff, threshold)
        return Verdict(hit, f"diff {diff:.4f}", diff, unsure)


def _diff(probe: Tensor, kept: Tensor, batch_rule: str) -> float:
    """Relative L1 distance, of all samples together or of the worst one."""
    if batch_rule == "mean":
        return float((probe - kept).abs().sum() / kept.abs().sum())
    return worst_ratio(probe - kept, kept)
