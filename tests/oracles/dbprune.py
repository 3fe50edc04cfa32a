"""Eager reference of DBPrune, written apart from the package: each block decides for itself."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from oracles.dbcache import IMAGE_STREAM, Streams, WatchedBlock
from support.tiny_models import TinyModel


@dataclass(frozen=True)
class PruneSettings:
    """Counts are calls of the transformer; blocks are counted from 0 over all lists."""

    Fn_compute_blocks: int = 1
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_accumulated_residual_diff_threshold: float | None = None
    max_warmup_steps: int = 0
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    steps_computation_mask: Sequence[int] | None = None
    steps_computation_policy: str = "dynamic"
    batch_rule: str = "max"
    downsample_factor: int = 1
    non_prune_block_ids: Sequence[int] = ()
    enable_dynamic_prune_threshold: bool = False
    max_dynamic_prune_threshold: float | None = None
    dynamic_prune_threshold_relax_ratio: float = 1.25


@dataclass
class _Block:
    """What a block left when it was last computed."""

    entered: Tensor
    residuals: dict[str, Tensor]


@dataclass
class _Image:
    step: int = 0
    num_pruned_steps: int = 0
    in_a_row: int = 0
    accumulated: float = 0.0
    blocks: dict[int, _Block] = field(default_factory=dict)


class PruneOracle:
    """DBPrune around a private copy of `model`."""

    def __init__(self, model: nn.Module, tiny: TinyModel, **settings: object) -> None:
        self.model = copy.deepcopy(model)
        self.num_blocks = 0
        self.settings: PruneSettings = replace(PruneSettings(), **settings)  # type: ignore[arg-type]
        for name in tiny.block_lists:
            blocks = self.model.get_submodule(name)
            assert isinstance(blocks, nn.ModuleList)
            for position, block in enumerate(blocks):
                outputs = tiny.stream_outputs[name]
                blocks[position] = WatchedBlock(block, self.num_blocks, outputs, self._visit)
                self.num_blocks += 1
        self.image = _Image()

    @torch.no_grad()
    def step(self, **kwargs: object) -> tuple[Tensor, tuple[int, ...]]:
        """The output and the blocks that were pruned."""
        self.diffs: list[float] = []
        self.pruned: list[int] = []
        self.left: dict[int, _Block] = {}
        self.may_prune = self._may_prune()
        output = self.model(**kwargs)
        image = self.image
        image.step += 1
        image.blocks.update(self.left)
        image.accumulated += sum(self.diffs) / max(1, len(self.diffs))
        image.num_pruned_steps += bool(self.pruned)
        image.in_a_row = image.in_a_row + 1 if self.pruned else 0
        return output[0], tuple(self.pruned)

    def _may_prune(self) -> bool:
        """What is known of the step before any block has run."""
        settings, image = self.settings, self.image
        mask, warmup = settings.steps_computation_mask, settings.max_warmup_steps
        if mask is not None:
            warmup = min(warmup, ([*mask, 0]).index(0))
            if image.step >= len(mask) or mask[image.step]:
                return False
        if image.step < warmup:
            return False
        if mask is not None and settings.steps_computation_policy == "static":
            return True
        if image.num_pruned_steps >= settings.max_cached_steps >= 0:
            return False
        if image.in_a_row >= settings.max_continuous_cached_steps >= 0:
            return False
        bound = settings.max_accumulated_residual_diff_threshold
        if bound is not None and image.accumulated >= bound:
            return False
        return settings.residual_diff_threshold > 0 or bool(mask) and self._is_static()

    def _is_static(self) -> bool:
        return self.settings.steps_computation_policy == "static"

    def _visit(self, index: int, streams: Streams, run: Callable[[], Streams]) -> Streams:
        settings = self.settings
        last = self.num_blocks - settings.Bn_compute_blocks
        is_fixed = not settings.Fn_compute_blocks <= index < last
        if is_fixed or index in settings.non_prune_block_ids:
            return run()
        entered = streams[IMAGE_STREAM]
        assert entered is not None
        probe = entered[..., :: settings.downsample_factor]
        if self._is_pruned(index, probe):
            self.pruned.append(index)
            kept = self.image.blocks[index].residuals
            return {
                n: s + kept[n] if s is not None and n in kept else None for n, s in streams.items()
            }
        before = {name: stream for name, stream in streams.items() if stream is not None}
        left = run()
        residuals = {n: s - before[n] for n, s in left.items() if s is not None and n in before}
        self.left[index] = _Block(probe.clone(), residuals)
        return left

    def _is_pruned(self, index: int, probe: Tensor) -> bool:
        kept = self.image.blocks.get(index)
        if not self.may_prune or kept is None:
            return False
        if self.settings.steps_computation_mask is not None and self._is_static():
            return True
        moved = (probe - kept.entered).abs().double().flatten(1).sum(1)
        size = kept.entered.abs().double().flatten(1).sum(1)
        is_mean = self.settings.batch_rule == "mean"
        diff = float(moved.sum() / size.sum() if is_mean else (moved / size).max())
        threshold = self._threshold()
        self.diffs.append(diff)
        return diff < threshold or self.settings.residual_diff_threshold >= 1

    def _threshold(self) -> float:
        settings = self.settings
        seen = [diff for diff in self.diffs if diff > 0][:5]
        if not settings.enable_dynamic_prune_threshold or not seen:
            return settings.residual_diff_threshold
        relaxed = settings.dynamic_prune_threshold_relax_ratio * sum(seen) / len(seen)
        most = settings.max_dynamic_prune_threshold
        if relaxed >= (2 * settings.residual_diff_threshold if most is None else most):
            return settings.residual_diff_threshold
        return max(relaxed, settings.residual_diff_threshold)
