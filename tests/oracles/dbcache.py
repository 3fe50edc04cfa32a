"""Eager reference of DBCache, written apart from the package so that the two can be compared.

It owns a deep copy of the model with wrapped blocks. The copy's own forward runs in eager mode; the
wrappers watch the streams and, on a hit, let the region pass. Keep one oracle a guidance branch.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

IMAGE_STREAM = "hidden_states"
Streams = dict[str, Tensor | None]


@dataclass(frozen=True)
class OracleSettings:
    """The settings of one branch; counts are calls of the transformer."""

    enabled: bool = True
    Fn_compute_blocks: int | None = None
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_accumulated_residual_diff_threshold: float | None = None
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    steps_computation_mask: Sequence[int] | None = None
    steps_computation_policy: str = "dynamic"
    num_inference_steps: int | None = None
    batch_rule: str = "max"


@dataclass(frozen=True)
class StepResult:
    """One call: `diff` is the recorded diff (None if none was), `probe_diff` the diff that could
    be measured whether or not a rule asked for it (None without a comparable computed step)."""

    output: Tensor
    hit: bool
    reason: str
    diff: float | None
    step: int
    probe_diff: float | None


@dataclass(frozen=True)
class _Verdict:
    hit: bool
    reason: str
    diff: float | None = None


@dataclass
class _State:
    """What one image leaves behind from step to step."""

    step: int = 0
    num_hits: int = 0
    hits_in_a_row: int = 0
    accumulated_diff: float = 0.0
    previous_probe: Tensor | None = None
    residuals: dict[str, Tensor] | None = None
    region: range | None = None


@dataclass
class _Pass:
    """What one call has seen so far."""

    verdict: _Verdict = field(default_factory=lambda: _Verdict(False, "empty_region"))
    trunk_input: Tensor | None = None
    probe: Tensor | None = None
    probe_diff: float | None = None
    entering: dict[str, Tensor] = field(default_factory=dict)
    residuals: dict[str, Tensor] | None = None


class WatchedBlock(nn.Module):
    """A block whose streams go through `visit(index, streams, run)` instead of straight in."""

    def __init__(
        self,
        block: nn.Module,
        index: int,
        outputs: tuple[str, ...],
        visit: Callable[[int, Streams, Callable[[], Streams]], Streams],
    ) -> None:
        super().__init__()
        self.block = block
        self.index = index
        self.outputs = outputs
        self.visit = visit
        self.signature = inspect.signature(block.forward)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        # Some forwards read a block's attributes: DiT embeds the timestep with blocks[0].norm1.emb.
        try:
            return super().__getattr__(name)
        except AttributeError:
            attribute: Tensor | nn.Module = getattr(vars(self)["_modules"]["block"], name)
            return attribute

    def forward(self, *args: object, **kwargs: object) -> Tensor | None | tuple[Tensor | None, ...]:
        bound = self.signature.bind(*args, **kwargs).arguments

        def run() -> Streams:
            results = self.block(*args, **kwargs)
            in_order = results if isinstance(results, tuple) else (results,)
            return dict(zip(self.outputs, in_order, strict=True))

        left = self.visit(self.index, {name: bound.get(name) for name in self.outputs}, run)
        in_order = tuple(left[name] for name in self.outputs)
        return in_order if len(in_order) > 1 else in_order[0]


class EagerOracle:
    """Eager DBCache around a private copy of `model`.

    block_lists: names of the ModuleLists in call order, one after the other or `in_turn`.
    stream_outputs: for each list, the names of what its blocks return, in order; each is also the
    name of the argument that the stream comes in by. A block of one name returns a bare tensor.
    replays_values: what left the region is replayed as it was, not what the region added.
    """

    def __init__(
        self,
        model: nn.Module,
        block_lists: Sequence[str],
        stream_outputs: Mapping[str, tuple[str, ...]],
        image_stream: str = IMAGE_STREAM,
        in_turn: bool = False,
        replays_values: bool = False,
        **settings: object,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.image_stream = image_stream
        self.replays_values = replays_values
        lists = {name: self.model.get_submodule(name) for name in block_lists}
        places = [(i, name) for name, blocks in lists.items() for i in range(len(blocks))]
        if in_turn:
            places.sort(key=lambda place: place[0])
        for index, (i, name) in enumerate(places):
            block, outputs = lists[name][i], stream_outputs[name]
            lists[name][i] = WatchedBlock(block, index, outputs, self._visit)
        self.num_blocks = len(places)
        self.settings = OracleSettings()
        self._state = _State()
        self._pass = _Pass()
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        """Change settings between steps; the image under way keeps its state."""
        changed: OracleSettings = replace(self.settings, **settings)  # type: ignore[arg-type]
        num_first = changed.Fn_compute_blocks
        if num_first is None:
            num_first = max(1, min(8, self.num_blocks // 4))
        if num_first + changed.Bn_compute_blocks > self.num_blocks:
            raise ValueError(f"Fn + Bn is more than the {self.num_blocks} blocks of the trunk")
        self.settings = changed
        self.region = range(num_first, self.num_blocks - changed.Bn_compute_blocks)

    def new_image(self) -> None:
        self._state = _State()

    @torch.no_grad()
    def step(self, **kwargs: object) -> StepResult:
        """Run the transformer once; kwargs are those of its forward."""
        self.begin_step()
        output = self.model(**kwargs)
        image = output[0] if isinstance(output, tuple) else output
        step, probe_diff = self._state.step, self._pass.probe_diff
        verdict = self.end_step()
        return StepResult(image, verdict.hit, verdict.reason, verdict.diff, step, probe_diff)

    def begin_step(self) -> None:
        if self._state.step == self.settings.num_inference_steps:
            self.new_image()
        self._pass = _Pass()

    def end_step(self) -> _Verdict:
        self._commit(self._pass.verdict)
        return self._pass.verdict

    def _commit(self, verdict: _Verdict) -> None:
        state = self._state
        state.step += 1
        if verdict.diff is not None and verdict.diff > 0:
            state.accumulated_diff += verdict.diff
        if verdict.hit:
            state.num_hits += 1
            state.hits_in_a_row += 1
            return
        state.hits_in_a_row = 0
        state.previous_probe = self._pass.probe
        state.residuals = self._pass.residuals
        state.region = self.region

    def _visit(self, index: int, streams: Streams, run: Callable[[], Streams]) -> Streams:
        """Take the streams entering block `index` to those leaving it."""
        now = self._pass
        if index == 0:
            now.trunk_input = streams[self.image_stream]
        if index not in self.region:
            return run()
        if index == self.region[0]:
            now.entering = {name: s for name, s in streams.items() if s is not None}
            assert now.trunk_input is not None
            now.probe = now.entering[self.image_stream] - now.trunk_input
            now.probe_diff = self._measure(now.probe)
            now.verdict = self._decide(now.probe_diff)
        is_last = index == self.region[-1]
        if now.verdict.hit:
            return self._approximate(streams) if is_last else streams
        leaving = run()
        if is_last:
            now.residuals = {
                name: stream - self._base(now.entering[name])
                for name, stream in leaving.items()
                if stream is not None and name in now.entering
            }
        return leaving

    def _approximate(self, streams: Streams) -> Streams:
        entering, residuals = self._pass.entering, self._state.residuals
        assert residuals is not None
        # A stream without a residual left the region as None when it was computed (SD3's text).
        return {
            n: self._base(entering[n]) + residuals[n] if n in residuals else None for n in streams
        }

    def _base(self, entering: Tensor) -> Tensor:
        return torch.zeros_like(entering) if self.replays_values else entering

    def _decide(self, probe_diff: float | None) -> _Verdict:
        if not self.settings.enabled:
            return _Verdict(False, "disabled")
        for rule in (self._by_warmup, self._by_mask, self._by_limits):
            verdict = rule()
            if verdict is not None:
                return verdict
        if not self._has_residuals():
            return _Verdict(False, "no_residual")
        return self._by_diff(probe_diff)

    def _by_warmup(self) -> _Verdict | None:
        num_warmup = self.settings.max_warmup_steps
        mask = self.settings.steps_computation_mask
        if mask is not None:
            num_leading_ones = 0
            while num_leading_ones < len(mask) and mask[num_leading_ones] == 1:
                num_leading_ones += 1
            num_warmup = min(num_warmup, num_leading_ones)
        step = self._state.step
        if step < num_warmup and step % self.settings.warmup_interval == 0:
            return _Verdict(False, "warmup")
        return None

    def _by_mask(self) -> _Verdict | None:
        mask = self.settings.steps_computation_mask
        if mask is None:
            return None
        step = self._state.step
        if step >= len(mask) or mask[step] == 1:
            return _Verdict(False, "mask")
        if self.settings.steps_computation_policy == "dynamic":
            return None
        if self._has_residuals():
            return _Verdict(True, "mask")
        return _Verdict(False, "no_residual")

    def _by_limits(self) -> _Verdict | None:
        settings, state = self.settings, self._state
        if 0 <= settings.max_cached_steps <= state.num_hits:
            return _Verdict(False, "max_cached")
        if 0 <= settings.max_continuous_cached_steps <= state.hits_in_a_row:
            return _Verdict(False, "max_continuous")
        max_accumulated = settings.max_accumulated_residual_diff_threshold
        if max_accumulated is not None and state.accumulated_diff >= max_accumulated:
            return _Verdict(False, "max_accumulated")
        if settings.residual_diff_threshold <= 0:
            return _Verdict(False, "threshold_zero")
        return None

    def _by_diff(self, diff: float | None) -> _Verdict:
        threshold = self.settings.residual_diff_threshold
        if diff is None or not torch.isfinite(torch.tensor(diff)):
            return _Verdict(False, "not_finite")
        if threshold >= 1:
            return _Verdict(True, "threshold_one")
        return _Verdict(diff < threshold, "diff", diff)

    def _has_residuals(self) -> bool:
        """Whether what was kept fits the region and the shapes of the streams now entering it."""
        state, entering = self._state, self._pass.entering
        if state.residuals is None or state.region != self.region:
            return False
        kept = state.residuals.items()
        return all(n in entering and entering[n].shape == r.shape for n, r in kept)

    def _measure(self, probe: Tensor) -> float | None:
        """Relative L1 distance of `probe` (batch, ...) from that of the last computed step."""
        previous = self._state.previous_probe
        if previous is None or previous.shape != probe.shape:
            return None
        # The differences are those of float32; only the sums are wide, to be free of their order.
        moved = (probe.float() - previous.float()).abs().double().flatten(1).sum(1)
        size = previous.float().abs().double().flatten(1).sum(1)
        if self.settings.batch_rule == "mean":
            return float(moved.sum() / size.sum())
        return float((moved / size).max())
