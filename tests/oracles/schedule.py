"""Eager reference of schedules over the whole trunk, with TaylorSeer's forecasts, written apart
from the package: at each computed step it also says what the forecast would have missed."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from oracles.dbcache import IMAGE_STREAM, Streams, WatchedBlock
from oracles.predictors import taylorseer
from support.tiny_models import TinyModel


class ScheduleOracle:
    """Every block of a private copy of `model` is one region. `is_hit(oracle)` decides at each
    step; `order` is TaylorSeer's."""

    def __init__(
        self,
        model: nn.Module,
        tiny: TinyModel,
        is_hit: Callable[["ScheduleOracle"], bool],
        order: int = 0,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.num_blocks = 0
        self.order = order
        self.decide = is_hit
        for name in tiny.block_lists:
            blocks = self.model.get_submodule(name)
            assert isinstance(blocks, nn.ModuleList)
            for position, block in enumerate(blocks):
                outputs = tiny.stream_outputs[name]
                blocks[position] = WatchedBlock(block, self.num_blocks, outputs, self._visit)
                self.num_blocks += 1
        self.now = 0
        self.effects: list[tuple[int, dict[str, Tensor]]] = []
        self.errors: dict[int, float] = {}

    @torch.no_grad()
    def step(self, **kwargs: object) -> tuple[Tensor, bool]:
        self.hit = self.decide(self)
        output = self.model(**kwargs)[0]
        self.now += 1
        return output, self.hit

    def _visit(self, index: int, streams: Streams, run: Callable[[], Streams]) -> Streams:
        if index == 0:
            self.entering = {name: s for name, s in streams.items() if s is not None}
        is_last = index == self.num_blocks - 1
        if self.hit:
            return self._forecast(streams) if is_last else streams
        left = run()
        if is_last:
            self._compare(left)
            effects = {n: s - self.entering[n] for n, s in left.items() if s is not None}
            self.effects.append((self.now, effects))
        return left

    def _forecast(self, streams: Streams) -> Streams:
        steps, effects = zip(*self.effects, strict=True)
        return {
            name: self.entering[name]
            + series(steps, [e[name] for e in effects], self.now, self.order)
            if name in effects[-1]
            else None
            for name in streams
        }

    def _compare(self, left: Streams) -> None:
        """The largest share of a sample's stream that the forecast misses; nothing reads what the
        last block leaves of the text."""
        if not self.effects:
            return
        estimate, stream = self._forecast(left)[IMAGE_STREAM], left[IMAGE_STREAM]
        assert estimate is not None and stream is not None
        moved = (estimate - stream).double().abs().flatten(1).sum(1)
        size = stream.double().abs().flatten(1).sum(1)
        self.errors[self.now] = float((moved / size).max())


def series(steps: Sequence[int], values: Sequence[Tensor], step: int, order: int) -> Tensor:
    """TaylorSeer's, in float64."""
    known = np.stack([value.double().numpy() for value in values])
    return torch.from_numpy(taylorseer(known, steps, step, order)).to(values[-1].dtype)
