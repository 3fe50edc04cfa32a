"""The ways in which a cache is run most, and how a model is run in them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dit_cachegraph
from bench.gpu.image import NUM_STEPS, Inputs
from dit_cachegraph.backend import cachedit

Called = Callable[..., Tensor]
MASK = [1, 1, 1, *[0, 1] * NUM_STEPS][:NUM_STEPS]


@dataclass(frozen=True, slots=True)
class Mode:
    """Settings, within `request(key)` or not, and how many copies a step waits for, at most."""

    settings: Mapping[str, object]
    is_named: bool
    max_waits: int

    @contextmanager
    def inside(self) -> Iterator[None]:
        with dit_cachegraph.request("bench") if self.is_named else contextlib.nullcontext():
            yield


_FIRST_BLOCK = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 2}
_TOLERANCE = {"error_tolerance": 0.5, "max_gap": 3}
_COUNTED = {"paced_over": "steps", "num_inference_steps": NUM_STEPS}
_STATIC = {"steps_computation_mask": MASK, "steps_computation_policy": "static"}
MODES: Mapping[str, Mode] = {
    "default preset": Mode(_TOLERANCE, is_named=False, max_waits=1),
    "over steps, named, so many steps": Mode(
        {**_TOLERANCE, **_COUNTED}, is_named=True, max_waits=1
    ),
    "DBCache F1B0, order 1": Mode(
        {**_FIRST_BLOCK, "residual_diff_threshold": 0.25, "predictor": "taylorseer"},
        is_named=False,
        max_waits=1,
    ),
    "static mask, named": Mode(
        {**_FIRST_BLOCK, **_STATIC, "predictor": "replay"}, is_named=True, max_waits=0
    ),
}


def compiled(model: nn.Module, inner: str, settings: Mapping[str, object]) -> Called:
    """The model with the cache."""
    options = {**settings, "inner_backend": inner}
    return torch.compile(model, backend=cachedit, options=options)  # type: ignore[arg-type]


def drawn(model: nn.Module, call: Called, image: Sequence[Inputs], mode: Mode) -> list[Tensor]:
    """What each step returns, of an image of its own."""
    dit_cachegraph.reset(model)
    with mode.inside():
        return [call(**inputs) for inputs in image]


def hits_of(model: nn.Module) -> str:
    """The decisions of the last image, a letter a step: `.` computed, `H` reused."""
    steps = dit_cachegraph.summary(model).steps[-NUM_STEPS:]
    return "".join("H" if step.hit else "." for step in steps)
