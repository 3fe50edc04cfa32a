"""Eager reference of a forecast: a model whose region passes on what an oracle forecasts of it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from oracles.dbcache import IMAGE_STREAM, EagerOracle, Streams
from oracles.predictors import Oracle, forecast_of, replay
from support.tiny_models import TinyModel


class ForecastOracle(EagerOracle):
    """Computes where `mask` has a 1. `first` and `last` blocks always run; the streams that leave
    the others are forecast from all that the computed steps of the image left."""

    def __init__(
        self, model: nn.Module, tiny: TinyModel, mask: Sequence[int], first: int, last: int
    ) -> None:
        super().__init__(
            model,
            tiny.block_lists,
            tiny.stream_outputs,
            steps_computation_mask=tuple(mask),
            steps_computation_policy="static",
            max_warmup_steps=0,
        )
        self.region = range(first, self.num_blocks - last)
        self.use("replay", {})

    def use(self, name: str, options: Mapping[str, object]) -> None:
        """Another predictor, which knows nothing of what was kept for the last one."""
        self._forecast = forecast_of(name, options)
        self._is_whole = options.get("calibrator_cache_type") == "hidden_states"
        self._is_for_all = options.get("enable_encoder_calibrator", True)
        self._known: list[tuple[int, dict[str, Tensor]]] = []
        self._state.residuals = None

    def new_image(self) -> None:
        super().new_image()
        self._known.clear()

    def _commit(self, verdict) -> None:
        effects, entering = self._pass.residuals, self._pass.entering
        if not verdict.hit and effects is not None:
            effects = {
                name: entering[name] + effect if self._is_value(name) else effect
                for name, effect in effects.items()
            }
            self._known.append((self._state.step, effects))
        super()._commit(verdict)

    def _approximate(self, streams: Streams) -> Streams:
        steps = [step for step, _ in self._known]
        left: Streams = {}
        for name in streams:
            kept = [effects[name] for _, effects in self._known if name in effects]
            base = self._pass.entering.get(name)
            forecast = self._forecast if self._is_forecast(name) else replay
            effect = _forecast(forecast, kept, steps, self._state.step) if kept else None
            left[name] = effect if effect is None or self._is_value(name) else base + effect
        return left

    def _is_forecast(self, name: str) -> bool:
        return name == IMAGE_STREAM or self._is_for_all

    def _is_value(self, name: str) -> bool:
        """What is replayed, and not forecast, is what was added, whatever is forecast of others."""
        return self._is_whole and self._is_forecast(name)


def _forecast(oracle: Oracle, kept: Sequence[Tensor], steps: Sequence[int], step: int) -> Tensor:
    values = np.stack([tensor.double().numpy() for tensor in kept])
    return torch.from_numpy(np.asarray(oracle(values, steps, step))).to(kept[-1])
