"""The ways in which a cache is run most, and what each step of a small FLUX in bfloat16 does beside
its segments under them."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.step_log import StepReport
from support.image_runs import image_of
from support.launch_count import Counted, count_steps
from support.running import compile_cached
from support.tiny_models import build_flux

NUM_STEPS, SIDE, WIDTH = 14, 8, 32
FIRST_STEADY = 5  # From here on all is there that a step may keep.
MASK = [1, 1, 1, *[0, 1] * NUM_STEPS]


@dataclass(frozen=True)
class Mode:
    """`is_named`: within `request(key)`."""

    settings: Mapping[str, object]
    is_named: bool = False

    @property
    def alternates(self) -> bool:
        """True where the test has to say which steps are reused."""
        return "residual_diff_threshold" in self.settings


_DEFAULT = {"error_tolerance": 5.0, "max_gap": 2}
_FIRST_BLOCK = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 2}
_BY_DIFF = {**_FIRST_BLOCK, "residual_diff_threshold": 1.0}
_STATIC = {
    **_FIRST_BLOCK, "steps_computation_mask": MASK, "steps_computation_policy": "static",
}  # fmt: skip
MODES = {
    "default preset": Mode(_DEFAULT),
    "over steps, named, so many steps": Mode(
        {**_DEFAULT, "paced_over": "steps", "num_inference_steps": NUM_STEPS}, is_named=True
    ),
    "DBCache F1B0, replay": Mode({**_BY_DIFF, "predictor": "replay"}),
    "DBCache F1B0, order 1": Mode({**_BY_DIFF, "predictor": "taylorseer"}),
    "static mask, named": Mode({**_STATIC, "predictor": "replay"}, is_named=True),
}


@torch.no_grad()
def steady_steps(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepReport, Counted]]:
    """The later steps of an image, with what each did."""
    model = build_flux(2, 3).bfloat16()
    compiled = compile_cached(model, **mode.settings)
    image = image_of(model, batch=1, size=SIDE, num_steps=NUM_STEPS)

    def call(i: int) -> None:
        if mode.alternates:
            dc.configure(model, residual_diff_threshold=1.0 if i % 2 else 1e-9)
        compiled(**image[i])

    with dc.request("a") if mode.is_named else contextlib.nullcontext():
        counted = count_steps(model, call, NUM_STEPS, SIDE * SIDE * WIDTH, monkeypatch)
    return list(zip(dc.summary(model).steps, counted, strict=True))[FIRST_STEADY:]
