"""The picture of what the steps saw and decided: that it shows what is in the report."""

import gc

import matplotlib.image
import numpy as np
import pytest
import torch

import dit_cachegraph as dc
from support.running import compile_cached, run_all
from support.tiny_models import WAN, trajectory
from support.two_models import TwoModels

REUSED = np.array([0x1A, 0x7F, 0x37]) / 255


def share_of_green(path) -> float:
    pixels = matplotlib.image.imread(path)[..., :3]
    return float((np.abs(pixels - REUSED).max(-1) < 0.02).mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"residual_diff_threshold": 0.3, "max_warmup_steps": 2, "observe_error": True},
        pytest.param({"preset": "fast", "error_tolerance": 0.5}, marks=pytest.mark.slow),
        {"rule": "dbprune", "residual_diff_threshold": 0.3, "max_warmup_steps": 2},
    ],
    ids=["dbcache", "preset", "dbprune"],
)
def test_reused_blocks_are_green(settings, tmp_path):
    model = WAN.build(4)
    compiled = compile_cached(model, enabled=False)
    inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
    steps = list(trajectory(WAN, inputs, 10))
    run_all(compiled, steps)
    dc.plot(compiled, tmp_path / "off.png")
    dc.configure(compiled, enabled=True, **settings)
    dc.reset(compiled)
    assert any(ran.hit for ran in run_all(compiled, steps))
    dc.plot(compiled, tmp_path / "on.png")
    assert matplotlib.image.imread(tmp_path / "on.png").shape[:2] == (450, 900)
    assert share_of_green(tmp_path / "off.png") == 0
    assert share_of_green(tmp_path / "on.png") > 0.01


def test_both_guidance_branches_are_drawn(tmp_path):
    model = WAN.build(2)
    compiled = compile_cached(model, every=2)
    branches = []
    for seed in (0, 1):
        inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=seed)
        branches.append(list(trajectory(WAN, inputs, 4, seed=seed)))
    for pair in zip(*branches, strict=True):
        run_all(compiled, pair)
    dc.plot(compiled, tmp_path / "both.png")
    assert matplotlib.image.imread(tmp_path / "both.png").shape[:2] == (900, 900)


def test_of_two_transformers_both_are_drawn(tmp_path):
    pipe = TwoModels(WAN.build(2), WAN.build(4))
    for model, num_steps in zip(pipe.components.values(), (4, 6), strict=True):
        inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
        run_all(compile_cached(model, every=2), trajectory(WAN, inputs, num_steps))
    dc.plot(pipe, tmp_path / "both.png")
    assert matplotlib.image.imread(tmp_path / "both.png").shape[:2] == (900, 900)


def test_what_was_drawn_with_graphs_that_are_gone(tmp_path):
    model = WAN.build(2)
    inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
    run_all(compile_cached(model, every=2), trajectory(WAN, inputs, 4))
    torch._dynamo.reset()
    gc.collect()
    with pytest.raises(ValueError, match="graphs of the last image are gone, .* draw once more"):
        dc.plot(model, tmp_path / "gone.png")


def test_nothing_to_plot(tmp_path):
    compiled = compile_cached(WAN.build(2))
    with pytest.raises(ValueError, match="no image has begun yet"):
        dc.plot(compiled, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
