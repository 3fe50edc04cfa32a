"""How long state is held, and by whom: bytes after the last step, after an abort, under a bound."""

import gc
import random
from pathlib import Path

import pytest
import torch

import dit_cachegraph as dc
from support.image_runs import SETTINGS, image_of, oracle_of, under
from support.running import assert_same_run, compile_cached, run_all, run_step
from support.tiny_models import FLUX, at_step
from support.toy_dits import DIM, GatedBlock, ReadingDiT
from support.toy_runs import compile_toy

STEPS = 20
STATM = Path("/proc/self/statm")


@pytest.fixture
def model():
    return FLUX.build(5)


def on_a_schedule(image, num_steps=STEPS, first=0):
    """The image with the timesteps of a plain schedule of `num_steps`, from step `first` on."""
    shape = image[0]["timestep"].shape
    return [
        {**step, "timestep": torch.full(shape, 1 - i / num_steps)}
        for i, step in enumerate(image[: num_steps - first], first)
    ]


def scheduled_image(model, seed):
    return on_a_schedule(image_of(model, seed=seed, num_steps=STEPS))


def nbytes(model) -> int:
    return dc.summary(model).state_nbytes


def test_state_is_freed_after_the_last_step_that_is_given(model):
    compiled = compile_cached(model, **SETTINGS, num_inference_steps=9)
    for seed in range(2):
        image = image_of(model, seed=seed)
        ran = run_all(compiled, image[:8])
        assert nbytes(model) > 0
        ran += run_all(compiled, image[8:])
        assert nbytes(model) == 0
        assert_same_run(ran, oracle_of(model), image)


def test_state_is_freed_after_the_last_step_that_the_image_before_had(model):
    """Its tensors may live on: nothing is held while the VAE decodes."""
    compiled = compile_cached(model, **SETTINGS)
    first, second = scheduled_image(model, 0), scheduled_image(model, 1)
    run_all(compiled, first)
    assert nbytes(model) > 0
    del first
    ran = run_all(compiled, second)
    assert nbytes(model) == 0
    assert_same_run(ran, oracle_of(model), second)


@pytest.mark.parametrize("num_steps_before", [1, 5, STEPS - 2])
def test_an_aborted_image_does_not_tell_when_the_next_one_ends(model, num_steps_before):
    compiled = compile_cached(model, **SETTINGS)
    first, second = scheduled_image(model, 0), scheduled_image(model, 1)
    run_all(compiled, first[:num_steps_before])
    del first
    assert_same_run(run_all(compiled, second), oracle_of(model), second)


def test_state_that_was_dropped_too_early_only_computes(model):
    """20 steps at first; then 40 of which the 20th stands where those ended."""
    compiled = compile_cached(model, **{**SETTINGS, "residual_diff_threshold": 1.0})
    first = scheduled_image(model, 0)
    run_all(compiled, first)
    del first
    longer = image_of(model, seed=1, num_steps=24)
    clocks = [1 - i / STEPS for i in range(STEPS)] + [0.04, 0.03, 0.02, 0.01]
    shape = longer[0]["timestep"].shape
    longer = [
        {**step, "timestep": torch.full(shape, clock)}
        for step, clock in zip(longer, clocks, strict=True)
    ]
    ran = run_all(compiled, longer)
    assert [r.hit for r in ran] == [False] * 2 + [True] * 18 + [False] + [True] * 3
    assert ran[20].reason == "its state was freed after what was taken for the last step"
    again = under(longer[0], longer)
    assert [r.hit for r in run_all(compiled, again)] == [False] * 2 + [True] * 22


def test_nothing_is_learned_of_an_end_that_is_told(model):
    """An image that was left two steps before its end looks whole."""
    settings = {**SETTINGS, "residual_diff_threshold": 1.0, "num_inference_steps": STEPS + 2}
    compiled = compile_cached(model, **settings)
    clocks = [1 - i / STEPS for i in range(STEPS)] + [0.03, 0.01]
    first, second = (
        [
            {**step, "timestep": torch.full(step["timestep"].shape, clock)}
            for step, clock in zip(
                image_of(model, seed=s, num_steps=STEPS + 2), clocks, strict=True
            )
        ]
        for s in range(2)
    )
    run_all(compiled, first[:STEPS])
    del first
    assert [r.hit for r in run_all(compiled, second)] == [False] * 2 + [True] * STEPS
    assert nbytes(model) == 0


def test_guidance_that_ends_half_way(model):
    """The unguided branch is let go at the image's end, though its prompt lives on."""
    compiled = compile_cached(model, **SETTINGS)
    for seed in range(2):
        cond = scheduled_image(model, seed)
        negative = image_of(model, seed=50 + seed)[0]
        ran, unguided_ran, unguided = [], [], []
        for i, step in enumerate(cond):
            ran.append(run_step(compiled, step))
            if i < STEPS // 2:
                unguided.append(at_step(negative, step["hidden_states"], step["timestep"]))
                unguided_ran.append(run_step(compiled, unguided[-1]))
        assert_same_run(ran, oracle_of(model), cond)
        assert_same_run(unguided_ran, oracle_of(model), unguided)
    assert nbytes(model) == 0


def test_a_request_that_is_gone_leaves_nothing_under_a_negative_prompt_that_is_shared(model):
    compiled = compile_cached(model, **SETTINGS)
    negative = image_of(model, seed=50)[0]
    for seed, num_steps in ((0, 3), (1, 5)):
        cond = image_of(model, seed=seed)
        for step in cond[:num_steps]:
            run_step(compiled, step)
            run_step(compiled, at_step(negative, step["hidden_states"], step["timestep"]))
        assert nbytes(model) > 0
        del cond, step
        assert nbytes(model) == 0


def test_a_second_image_under_one_prompt_frees_the_first(model):
    compiled = compile_cached(model, **SETTINGS)
    first = image_of(model, seed=0)
    run_all(compiled, first[:4])
    one = nbytes(model)
    for seed in range(1, 4):
        run_all(compiled, under(first[0], image_of(model, seed=seed))[:4])
        assert nbytes(model) == one


def test_three_branches_of_guidance(model):
    compiled = compile_cached(model, **SETTINGS)
    for seed in range(2):
        cond = image_of(model, seed=seed)
        others = [image_of(model, seed=10 * k + seed)[0] for k in (1, 2)]
        images = [cond, *(under(other, cond) for other in others)]
        ran = [[run_step(compiled, step) for step in steps] for steps in zip(*images, strict=True)]
        for k, image in enumerate(images):
            assert_same_run([r[k] for r in ran], oracle_of(model), image)


def test_under_a_bound_the_least_recently_used_request_loses_its_state(model):
    images = [image_of(model, seed=i) for i in range(3)]
    compiled = compile_cached(model, **{**SETTINGS, "residual_diff_threshold": 1.0})
    for i in (0, 1, 2):
        run_all(compiled, images[i][:3])
    three = nbytes(model)
    dc.configure(model, max_state_bytes=2 * three // 3)
    assert run_step(compiled, images[2][3]).hit
    assert nbytes(model) == 2 * three // 3
    lost = run_step(compiled, images[0][3])
    assert lost.reason == f"its state was freed under max_state_bytes={2 * three // 3}"
    assert run_step(compiled, images[0][4]).hit
    assert run_step(compiled, images[1][3]).reason == lost.reason  # 0 and 2 are more recent
    dc.configure(model, max_state_bytes=0)
    assert not any(r.hit for r in run_all(compiled, images[2][4:]))
    assert nbytes(model) == 0


def test_a_hit_is_a_use_of_what_is_held(model):
    images = [image_of(model, seed=i) for i in range(3)]
    compiled = compile_cached(model, **{**SETTINGS, "residual_diff_threshold": 1.0})
    for i in (0, 1):
        run_all(compiled, images[i][:3])
    assert run_step(compiled, images[0][3]).hit
    dc.configure(model, max_state_bytes=nbytes(model))
    run_all(compiled, images[2][:3])
    assert run_step(compiled, images[0][4]).hit
    assert "max_state_bytes" in run_step(compiled, images[1][3]).reason


def test_two_trunks_on_the_same_latents_are_two_branches():
    """Skip-layer guidance calls a step's latents once more, with some blocks left out."""

    torch.manual_seed(0)
    model = ReadingDiT([GatedBlock() for _ in range(8)])
    compiled = compile_toy(model, residual_diff_threshold=1.0, max_warmup_steps=1)
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 2, 64, DIM, generator=generator)
    text = torch.randn(2, 4, DIM, generator=generator)
    for i in range(5):
        latents = torch.lerp(start, end, i / 8)
        timestep = torch.full((2,), 90.0 - 9 * i)
        with torch.no_grad():
            compiled(latents, timestep, text)
            compiled(latents, timestep, text, skip=True)
    steps = dc.summary(model).steps
    assert [s.step for s in steps] == [i for i in range(5) for _ in range(2)]
    assert [s.hit for s in steps] == [i > 0 for i in range(5) for _ in range(2)]


STATIC = {
    "steps_computation_mask": (1, 1, 0, 1, 0, 1),
    "steps_computation_policy": "static",
}


@pytest.mark.parametrize("rule", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("num_steps", [3, 9], ids=["aborted", "whole"])
def test_a_key_for_each_image_under_a_prompt_that_lives_on(num_steps, rule):
    torch.manual_seed(0)
    model = ReadingDiT([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model, residual_diff_threshold=1.0, max_warmup_steps=2, **rule)
    text, held = torch.randn(1, 4, DIM), []
    for key in range(80):
        generator = torch.Generator().manual_seed(key)
        start, end = torch.randn(2, 1, 64, DIM, generator=generator)
        with torch.no_grad(), dc.request(key):
            for i in range(num_steps):
                compiled(torch.lerp(start, end, i / 12), torch.full((1,), 90.0 - 10 * i), text)
        assert any(step.hit for step in list(dc.summary(model).steps)[-num_steps:])
        held.append((nbytes(model), dc.summary(model).num_branches))
    if num_steps == 9 and not rule:
        assert max(branches for _, branches in held) <= 32
        assert held[-1][0] == 0 and held[-1][1] <= 10
    else:  # Any may still be under way, for as long as it may wait.
        assert held[-1] == (80 * held[0][0], 80)
    dc.configure(model, max_idle_seconds=0)
    with dc.request("next"), torch.no_grad():
        compiled(start, torch.full((1,), 90.0), text)
    assert nbytes(model) <= held[0][0]


def test_an_image_by_another_name_under_one_prompt_goes_on():
    """Each begins when the one before it has a step left."""
    torch.manual_seed(0)
    model = ReadingDiT([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model, residual_diff_threshold=1.0, max_warmup_steps=2)
    text = torch.randn(1, 4, DIM)

    def step(key: int, i: int) -> None:
        start, end = torch.randn(2, 1, 64, DIM, generator=torch.Generator().manual_seed(key))
        with torch.no_grad(), dc.request(key):
            compiled(torch.lerp(start, end, i / 12), torch.full((1,), 90.0 - 10 * i), text)

    for key in range(20):
        for i in range(1 if key else 0, 8):
            step(key, i)
        step(key + 1, 0)
        step(key, 8)
    by_key = {str(key): [] for key in range(20)}
    for made in dc.summary(model).steps:
        by_key.get(made.request, []).append((made.step, made.hit))
    assert list(by_key.values()) == [[(i, i > 1) for i in range(9)]] * 20


def resident_bytes() -> int:
    gc.collect()
    return int(STATM.read_text().split()[1]) * 4096


@pytest.mark.skipif(not STATM.exists(), reason="the process's memory is read from /proc")
def test_five_hundred_requests_hold_no_more_than_fifty():
    """Of mixed sizes and steps, with prompts of their own or one that they share, many aborted."""
    torch.manual_seed(0)
    model = ReadingDiT([GatedBlock() for _ in range(4)])
    compiled = compile_toy(model, residual_diff_threshold=0.5, max_warmup_steps=1)
    rng = random.Random(0)
    prompts = [torch.randn(1, 4, DIM) for _ in range(3)]

    def draw(seed: int) -> None:
        tokens = rng.choice([512, 1024, 2048])
        generator = torch.Generator().manual_seed(seed)
        start, end = torch.randn(2, 1, tokens, DIM, generator=generator)
        text = rng.choice([*prompts, torch.randn(1, 4, DIM, generator=generator)])
        num_steps = rng.randint(1, 10)
        for i in range(num_steps):
            latents = torch.lerp(start, end, i / 12)
            with torch.no_grad():
                compiled(latents, torch.full((1,), 90.0 - 9 * i), text)

    held = []
    for seed in range(500):
        draw(seed)
        if seed in (49, 499):
            held.append((nbytes(model), resident_bytes()))
    (bytes_after_50, memory_after_50), (bytes_after_500, memory_after_500) = held
    largest = 2 * 2048 * DIM * 4
    assert bytes_after_50 <= 3 * largest and bytes_after_500 <= 3 * largest
    # One state a request would be 450 x 64 KiB on average.
    assert memory_after_500 - memory_after_50 < 450 * largest / 8
    prompts.clear()
    assert nbytes(model) == 0
