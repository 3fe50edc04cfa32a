"""Calibration: the best mask against every mask there is, and promises kept on pictures that the
search has not seen."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.calibration.find_mask import find_masks, reuse_costs
from dit_cachegraph.calibration.pictures import as_array, psnr_db
from dit_cachegraph.calibration.result import CalibratedConfig
from dit_cachegraph.demo.tiny_flux import draw, embed, load_pipeline, shipped_prompts
from dit_cachegraph.policy.taylorseer import TaylorSeerCalibratorConfig
from dit_cachegraph.runtime.cache_state import Recorded

ORDER_1 = TaylorSeerCalibratorConfig(taylorseer_order=1)


def recording(num_steps: int, seed: int) -> list[Recorded]:
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(num_steps, 2, 8, generator=generator).cumsum(0)
    out = torch.full((2, 8), 4.0)
    return [Recorded(None, (effect,), (out,)) for effect in effects]


def cost_of(mask: tuple[int, ...], recordings: list[list[Recorded]]) -> float:
    """The squared errors of a mask's reused steps, added up: straight lines through the last two
    computed values."""
    total = 0.0
    for s, computes in enumerate(mask):
        if computes:
            continue
        i, j = [k for k in range(s) if mask[k]][-2:]
        errors = []
        for steps in recordings:
            a, b, now = (steps[k].effects[0] for k in (i, j, s))
            line = b + (b - a) / (j - i) * (s - j)
            errors.append(float((now - line).abs().sum() / steps[s].outs[0].abs().sum()) ** 2)
        total += sum(errors) / len(errors)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_the_best_of_all_there_are(seed):
    num_steps = 9
    recordings = [recording(num_steps, seed), recording(num_steps, 100 + seed)]
    masks = find_masks(reuse_costs(recordings, ORDER_1))
    assert set(masks) == set(range(2, num_steps + 1))
    for count, mask in masks.items():
        every = [
            (1, 1, *rest)
            for rest in itertools.product((0, 1), repeat=num_steps - 2)
            if sum(rest) == count - 2
        ]
        best = min(cost_of(other, recordings) for other in every)
        assert sum(mask) == count
        assert cost_of(mask, recordings) == pytest.approx(best, rel=1e-5, abs=1e-9)


def test_masks_of_next_to_no_steps():
    assert find_masks(np.full((2, 2, 2), math.inf)) == {2: (1, 1)}


def test_a_run_of_reused_steps_is_bounded():
    masks = find_masks(reuse_costs([recording(16, 0)], ORDER_1))
    assert all("0" * 9 not in "".join(map(str, mask)) for mask in masks.values())
    assert min(masks) > 2


@pytest.mark.parametrize(
    ("drawn", "reference", "expected"),
    [
        (np.full((2, 2), 0.5), np.full((2, 2), 0.6), 20.0),
        (np.array([0.0, 4.0]), np.array([-1.0, 3.0]), 20 * math.log10(4)),
        (np.ones(3), np.ones(3), math.inf),
    ],
)
def test_psnr(drawn, reference, expected):
    assert psnr_db(drawn, reference) == pytest.approx(expected)


def test_pictures_of_any_kind():
    array = np.array([[0, 255], [51, 102]], np.uint8)
    for drawn in (array, [array], torch.tensor([[0.0, 1.0], [0.2, 0.4]], dtype=torch.float16)):
        np.testing.assert_allclose(as_array(drawn).reshape(2, 2), [[0, 1], [0.2, 0.4]], atol=1e-3)
    with pytest.raises(ValueError, match=r"pictures of \(2,\) and \(3,\) can't be compared"):
        psnr_db(np.ones(2), np.ones(3))


@pytest.fixture
def drawing():
    """The demo's pipeline, compiled, and a function that draws two small pictures of a seed."""
    pipe = load_pipeline()
    pipe.transformer.compile(backend="cachedit", options={"inner_backend": "eager"})
    embeddings = embed(shipped_prompts())

    def run(seed: int) -> torch.Tensor:
        tokens = draw(pipe, embeddings[2 * seed : 2 * seed + 2], num_steps=14)
        return (tokens.clamp(-1, 1) + 1) / 2

    return pipe, run


def test_promises_are_kept_on_pictures_not_seen_before(drawing):
    pipe, run = drawing
    found = dc.calibrate(pipe, run, target_psnr=30.0, inputs=(0,), holdout=(5, 6))
    assert found.is_reached and found.holdout.psnr_db >= 30.0
    assert found.best == min(
        (point for point in found.frontier if point.psnr_db >= 30.0), key=lambda p: p.share
    )
    assert found.run_cost <= 40 and found.holdout.share < 0.7
    # What it returns is what it measured: by hand on the holdout.
    plain = dc.configure(pipe, enabled=False) or [as_array(run(seed)) for seed in (5, 6)]
    dc.configure(pipe, enabled=True)
    dc.configure(pipe, **json.loads(json.dumps(dict(found))))
    drawn = []
    for seed in (5, 6):
        dc.reset(pipe)
        drawn.append(as_array(run(seed)))
    by_hand = [psnr_db(a, b) for a, b in zip(drawn, plain, strict=True)]
    assert sum(by_hand) / 2 == pytest.approx(found.holdout.psnr_db, abs=0.05)
    again = CalibratedConfig.from_json(found.to_json())
    assert (dict(again), again.holdout, str(again)) == (
        json.loads(json.dumps(dict(found))), _read(found.holdout), str(found),
    )  # fmt: skip


def _read(point):
    """The same as JSON gives it back: with lists."""
    return type(point)(point.share, point.psnr_db, json.loads(json.dumps(dict(point.settings))))


def test_a_budget_is_held_and_a_target_out_of_reach_is_admitted(drawing):
    pipe, run = drawing
    found = dc.calibrate(pipe, run, compute_budget=0.6, inputs=(0,), holdout=(5,))
    assert found.is_reached and found.holdout.share <= 0.6
    assert str(found).startswith("at most 60% of the block work: reached. On pictures not seen")
    found = dc.calibrate(pipe, run, compute_budget=0.05, inputs=(0,), holdout=(5,))
    assert not found.is_reached and "NOT reached; this is the best" in str(found)


@pytest.mark.parametrize("goals", [{}, {"target_psnr": 30.0, "compute_budget": 0.5}])
def test_one_goal_is_needed(goals):
    with pytest.raises(dc.InvalidConfig, match="one of target_psnr and compute_budget"):
        dc.calibrate(torch.nn.Linear(1, 1), lambda _: None, **goals)
