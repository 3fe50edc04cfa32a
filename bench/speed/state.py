"""What finding a step's state costs: the model, the request, the track, the settings, the region;
and writing the state down at the end."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from bench.common.spread import Spread, spread_of
from bench.speed.engines import CACHE_SETTINGS, force_decision
from bench.speed.flux import Depth, Preset, build_model, image_after_image, make_image
from bench.speed.steps import seconds_each
from dit_cachegraph.backend import cachedit
from dit_cachegraph.policy.rule import Decision
from dit_cachegraph.requests.request import current_caller
from dit_cachegraph.runtime.cached_state import CachedState
from dit_cachegraph.runtime.commit import commit
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.runtime.reading import Asked
from dit_cachegraph.runtime.step import RegionStep

NUM_CALLS = 50


@dataclass(frozen=True, slots=True)
class StateResult:
    """Microseconds of finding the state and milliseconds of the computed step that it is part of,
    both process CPU time; `share` is the one by the other, pair by pair."""

    state_microseconds: Spread
    step_milliseconds: Spread
    share: Spread


@dataclass(slots=True)
class _CapturingBackend:
    """The backend, but it keeps the driver and the arguments that Dynamo last called it with."""

    options: Mapping[str, object]
    driver: CachedModel | None = None
    arguments: list[object] = field(default_factory=list)

    def __call__(
        self, gm: fx.GraphModule, example_inputs: Sequence[torch.Tensor]
    ) -> Callable[..., object]:
        driver = cachedit(gm, example_inputs, options=self.options)
        if not isinstance(driver, CachedModel):
            raise RuntimeError("the model is not cached, so there is no state to find")
        self.driver = driver

        def run(*args: object) -> object:
            self.arguments[:] = args
            return driver(*args)

        return run


def measure_state(
    preset: Preset, depth: Depth, num_rounds: int, inner: str = "inductor"
) -> StateResult:
    """Time all that a step does for its state, on the arguments of a real call, and whole computed
    steps."""
    model, steps = build_model(preset, depth), image_after_image(make_image(preset))
    backend = _CapturingBackend({**CACHE_SETTINGS, "inner_backend": inner})
    call = torch.compile(model, backend=backend)
    force_decision(model, hit=False)
    for _ in range(3):
        call(**next(steps))
    driver = backend.driver
    if driver is None:
        raise RuntimeError("Dynamo did not call the backend")
    state_seconds, step_seconds = [], []
    for _ in range(num_rounds):
        step_seconds.append(seconds_each(lambda: call(**next(steps)), NUM_CALLS))
        state_seconds.append(seconds_each(_state_of(driver, backend.arguments), NUM_CALLS))
    return StateResult(
        state_microseconds=spread_of([s * 1e6 for s in state_seconds]),
        step_milliseconds=spread_of([s * 1e3 for s in step_seconds]),
        share=spread_of([a / b for a, b in zip(state_seconds, step_seconds, strict=True)]),
    )


def _state_of(driver: CachedModel, arguments: Sequence[object]) -> Callable[[], None]:
    """What a computed step does for its state, of an image that goes on."""
    values, trunk = driver.segments.values_of(arguments), driver.compiled.trunk
    first = driver.begin(values, current_caller())
    driver.looker.begin(first)
    driver.looker.identify(first, driver.reader.finish(first.begun, values, Asked()))
    clock, sample, state = first.call.clock, first.call.sample, first.conditioning.tracks[-1].state
    if clock is None or sample is None or not isinstance(state, CachedState):
        raise RuntimeError("the step that was captured read no clock or kept nothing")
    moves = itertools.count(1)

    def run() -> None:
        step = driver.begin(values, current_caller())
        move = 1e-6 * next(moves)
        reading = first.reading._replace(
            clock=tuple(c - move for c in clock), sample=sample + np.float32(move)
        )
        driver.looker.identify(step, reading)
        step.state = state
        step.regions.append(RegionStep(Decision(False, "warmup"), cached=state.regions[0]))
        commit(step, trunk)

    return run
