"""What an image does alone: DBCache in plain eager PyTorch, one object for each guidance branch.

It is told by whom it is called, so it never asks which image or which step a call belongs to. It
shares no code with the package. `look` says what the step decides; `settle` is then told what was
decided, gives the output that goes with it, and keeps what a computed step leaves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from support.explorer.dit import NUM_BLOCKS, ExploredDiT

TOO_CLOSE = 1e-4
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rules:
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
class Verdict:
    """What a step decides. `is_close`: a number lies so near to its bound that rounding decides."""

    hit: bool
    reason: str
    diff: float | None = None
    is_close: bool = False


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
    rules: Rules
    verdict: Verdict


class LoneImage:
    """One image under one guidance branch on one model."""

    def __init__(self) -> None:
        self.step = 0
        self.num_hits = 0
        self.num_hits_in_a_row = 0
        self.accumulated_diff = 0.0
        self._kept: _Kept | None = None
        self._half: _Half | None = None

    def look(self, model: ExploredDiT, inputs: Inputs, rules: Rules) -> Verdict:
        """Run the first blocks and say what the step does. Changes nothing that a step leaves."""
        start, temb = model.enter(inputs["hidden_states"], inputs["timestep"], inputs["guidance"])
        stream = self._run(model, range(rules.region.start), start, temb, inputs)
        probe = stream - start
        verdict = self._decide(rules, probe)
        self._half = _Half(model, inputs, temb, stream, probe, rules, verdict)
        return verdict

    def may_replay(self) -> bool:
        """Whether there is something of this very image that fits the step under way."""
        half, kept = self._half, self._kept
        assert half is not None
        return self._fits(half.rules, half.probe) and kept is not None

    def give_up(self) -> None:
        """The step under way never happened."""
        self._half = None

    def settle(self, hit: bool) -> Tensor:
        """The step ends: it was a hit, or computed. Returns its output."""
        half = self._half
        assert half is not None
        self._half = None
        region, stream = half.rules.region, half.stream
        if hit:
            assert self._kept is not None
            left = stream + self._kept.residual
        else:
            left = self._run(half.model, region, stream, half.temb, half.inputs)
            keeps = half.rules.enabled and len(region) > 0
            self._kept = _Kept(region, half.probe, left - stream) if keeps else None
        last = range(region.stop, NUM_BLOCKS)
        output = half.model.proj_out(self._run(half.model, last, left, half.temb, half.inputs))
        self._count(hit, half)
        return output

    def _count(self, hit: bool, half: _Half) -> None:
        self.step += 1
        self.num_hits += hit
        self.num_hits_in_a_row = self.num_hits_in_a_row + 1 if hit else 0
        verdict = half.verdict
        is_told_by_diff = hit == verdict.hit or verdict.is_close
        if verdict.diff is not None and is_told_by_diff and half.rules.residual_diff_threshold < 1:
            self.accumulated_diff += verdict.diff

    def _run(
        self, model: ExploredDiT, blocks: range, stream: Tensor, temb: Tensor, inputs: Inputs
    ) -> Tensor:
        for i in blocks:
            text, position_ids = inputs["encoder_hidden_states"], inputs["position_ids"]
            stream = model.blocks[i](stream, temb, text, position_ids)
        return stream

    def _fits(self, rules: Rules, probe: Tensor) -> bool:
        kept = self._kept
        return kept is not None and kept.region == rules.region and kept.probe.shape == probe.shape

    def _decide(self, rules: Rules, probe: Tensor) -> Verdict:
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

    def _limited(self, rules: Rules) -> Verdict | None:
        if 0 <= rules.max_cached_steps <= self.num_hits:
            return Verdict(False, "max_cached")
        if 0 <= rules.max_continuous_cached_steps <= self.num_hits_in_a_row:
            return Verdict(False, "max_continuous")
        bound = rules.max_accumulated_residual_diff_threshold
        if bound is not None and self.accumulated_diff >= bound:
            return Verdict(False, "accumulated", is_close=_is_close(self.accumulated_diff, bound))
        if rules.residual_diff_threshold <= 0:
            return Verdict(False, "threshold 0")
        return None

    def _by_diff(self, rules: Rules, probe: Tensor) -> Verdict:
        kept, threshold = self._kept, rules.residual_diff_threshold
        if kept is None or not self._fits(rules, probe):
            return Verdict(False, "nothing kept")
        diff = _diff(probe, kept.probe, rules.batch_rule)
        bound = rules.max_accumulated_residual_diff_threshold
        is_close = _is_close(diff, threshold) or (
            bound is not None and _is_close(self.accumulated_diff, bound)
        )
        return Verdict(threshold >= 1 or diff < threshold, f"diff {diff:.4f}", diff, is_close)


def _diff(probe: Tensor, kept: Tensor, batch_rule: str) -> float:
    """Relative L1 distance, of all samples together or of the worst one."""
    moved = (probe - kept).abs().flatten(1).sum(1)
    size = kept.abs().flatten(1).sum(1)
    if batch_rule == "mean":
        return float(moved.sum() / size.sum())
    return float(torch.max(moved / size))


def _is_close(number: float, bound: float) -> bool:
    return math.isclose(number, bound, rel_tol=TOO_CLOSE)
