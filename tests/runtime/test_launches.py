"""What the driver launches, waits for and moves at a step, for the four ways in which a cache is
run most: a table of `docs/performance.md`."""

import contextlib

import pytest
import torch

import dit_cachegraph as dc
from support.image_runs import image_of
from support.launch_count import count_steps
from support.running import compile_cached
from support.tiny_models import build_flux

NUM_STEPS, SIDE = 12, 8
WIDTH = 32
FIRST_STEADY = 5
DEFAULT = {"error_tolerance": 5.0, "max_gap": 2}
ALTERNATING = {"rule": "dbcache", "Fn_compute_blocks": 1, "max_warmup_steps": 2}
MASK = [1, 1, 1, *[0, 1] * NUM_STEPS]
# By name: settings, whether in a request by name, and (kernels, waits, streams) of a hit and of a
# computed step.
MODES = {
    "default": (DEFAULT, False, (2, 1, 4), (3, 1, 5)),
    "default, named, so many steps": (
        {**DEFAULT, "num_inference_steps": NUM_STEPS}, True, (1, 0, 4), (2, 0, 5),
    ),
    "dbcache, replay": ({**ALTERNATING, "predictor": "replay"}, False, (4, 1, 6), (5, 1, 9)),
    "dbcache, order 1": (
        {**ALTERNATING, "predictor": "taylorseer"}, False, (4, 1, 7), (5, 1, 9),
    ),
    "static mask": (
        {
            **ALTERNATING, "steps_computation_mask": MASK, "predictor": "replay",
            "steps_computation_policy": "static",
        },
        True, (1, 0, 3), (1, 0, 3),
    ),
}  # fmt: skip


def run_mode(settings, is_named, monkeypatch):
    """The steps of an image, with what each did, once all that is kept is there."""
    model = build_flux(2, 3).bfloat16()
    compiled = compile_cached(model, **settings)
    image = image_of(model, batch=1, size=SIDE, num_steps=NUM_STEPS)

    def call(i):
        if "steps_computation_mask" not in settings and settings.get("rule") == "dbcache":
            dc.configure(model, residual_diff_threshold=1.0 if i % 2 else 1e-9)
        compiled(**image[i])

    with torch.no_grad(), dc.request("a") if is_named else contextlib.nullcontext():
        counted = count_steps(model, call, NUM_STEPS, SIDE * SIDE * WIDTH, monkeypatch)
    steps = dc.summary(model).steps
    return list(zip(steps, counted, strict=True))[FIRST_STEADY:]


@pytest.mark.parametrize("mode", MODES)
def test_kernels_waits_and_streams_of_a_step(mode, monkeypatch):
    settings, is_named, of_hit, of_computed = MODES[mode]
    found = run_mode(settings, is_named, monkeypatch)
    assert {step.hit for step, _ in found} == {True, False}
    for step, counted in found:
        assert counted.row == (of_hit if step.hit else of_computed), (step, counted.launches)
