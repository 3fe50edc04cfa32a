"""Schedules of every kind on compiled models: two images each, every step as the oracle's."""

import pytest
import torch

import dit_cachegraph as dc
from support.image_runs import SETTINGS, image_of, oracle_of
from support.running import assert_same_run, compile_cached, run_all
from support.tiny_models import DIT, FLUX, WAN

pytestmark = pytest.mark.e2e


def heun(image):
    """All timesteps but the first twice; the second evaluation has latents of its own."""
    pairs = [(a, b) for a, b in zip(image[1::2], image[2::2], strict=True)]
    return [image[0], *(s for a, b in pairs for s in (a, {**b, "timestep": a["timestep"]}))]


def ascending(image):
    return [{**step, "timestep": 1 - step["timestep"]} for step in image]


def per_token(image):
    """Wan 2.2 image-to-video: the tokens of the first frame stay at 0 for ever."""
    moved = []
    for step in image:
        batch, _, frames, height, width = step["hidden_states"].shape
        timestep = step["timestep"][:, None].repeat(1, frames * height * width // 4)
        timestep[:, : timestep.shape[1] // frames] = 0
        moved.append({**step, "timestep": timestep})
    return moved


@pytest.mark.parametrize(
    ("tiny", "schedule"),
    [
        (FLUX, heun),
        (FLUX, ascending),
        (WAN, per_token),
        (WAN, heun),
        pytest.param(DIT, heun, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
def test_two_images_on_a_schedule(tiny, schedule):
    model = tiny.build(5)
    compiled = compile_cached(model, **SETTINGS)
    for seed in range(2):
        image = schedule(image_of(model, tiny, seed=seed))
        ran = run_all(compiled, image)
        assert_same_run(ran, oracle_of(model, tiny), image)
        assert any(step.hit for step in ran)
    assert len({s.request for s in dc.summary(model).steps}) == 2


def test_steps_past_the_end_of_a_mask_compute():
    model = FLUX.build(5)
    mask = [1, 1, 0, 0]
    settings = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    compiled = compile_cached(model, **SETTINGS, **settings)
    for seed in range(2):
        image = image_of(model, seed=seed)
        ran = run_all(compiled, image)
        assert_same_run(ran, oracle_of(model, **settings), image)
        assert [r.hit for r in ran] == [False, False, True, True] + [False] * 5


def test_one_named_request_for_image_after_image_by_a_mask():
    """Nothing is read there, so the number of steps says where the next image begins."""
    model = FLUX.build(5)
    mask = [1, 0, 1, 0]
    settings = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    compiled = compile_cached(model, **SETTINGS, **settings, num_inference_steps=4)
    image = image_of(model, seed=0, num_steps=4)
    with dc.request("a"), torch.no_grad():
        for _ in range(2):
            ran = run_all(compiled, image)
            assert [r.hit for r in ran] == [False, True, False, True]
