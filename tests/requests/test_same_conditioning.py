"""Several images under the very same conditioning objects, at once or one after another."""

import itertools

import pytest
import torch

import dit_cachegraph as dc
from support.image_runs import (
    NUM_STEPS,
    SETTINGS,
    assert_never_of_another,
    image_of,
    interleave,
    oracle_of,
    under,
)
from support.running import assert_same_run, compile_cached, run_all, run_step
from support.tiny_models import FLUX, WAN, at_step

pytestmark = pytest.mark.e2e


@pytest.fixture
def model():
    return FLUX.build(5)


@pytest.fixture
def images(model):
    return images_of_one_prompt(model)


def images_of_one_prompt(model):
    """Four images under one prompt object, each from noise of its own."""
    first = image_of(model, seed=0)
    return [first, *(under(first[0], image_of(model, seed=i)) for i in (1, 2, 3))]


def test_one_image_after_another(model, images):
    compiled = compile_cached(model, **SETTINGS)
    for image in images:
        ran = run_all(compiled, image)
        assert_same_run(ran, oracle_of(model), image)
        assert any(step.hit for step in ran)


@pytest.mark.parametrize("is_first", [True, False], ids=["first of all", "after an image"])
def test_an_abort_at_any_step_costs_the_next_image_nothing(is_first):
    for num_steps_before in range(1, NUM_STEPS):
        model = FLUX.build(5)  # Dynamo compiles its class once; what is known of it is its own
        first, second, third = images_of_one_prompt(model)[:3]
        compiled = compile_cached(model, **SETTINGS)
        if not is_first:
            run_all(compiled, first)
        run_all(compiled, second[:num_steps_before])
        for image in (third, first):
            assert_same_run(run_all(compiled, image), oracle_of(model), image)


def test_image_to_image_from_the_middle_after_an_abort():
    for num_steps_before in (1, 2, 4):
        model = FLUX.build(5)
        images = images_of_one_prompt(model)
        compiled = compile_cached(model, **SETTINGS)
        run_all(compiled, images[0])
        run_all(compiled, images[1][:num_steps_before])
        rest = images[2][num_steps_before:]
        assert_same_run(run_all(compiled, rest), oracle_of(model), rest)


def test_image_to_image_after_an_abort_in_the_first_image_of_all(model, images):
    """Its second step tells that its first was not the second of the image before."""
    compiled = compile_cached(model, **SETTINGS)
    run_all(compiled, images[1][:1])
    ran = run_all(compiled, images[2][1:])
    assert ran[0].reason == "latents unlike those of the step before"
    assert_same_run(ran, oracle_of(model), images[2][1:])


def test_the_same_seed_again(model, images):
    """Its first latents are those of the image that was aborted after them."""
    compiled = compile_cached(model, **SETTINGS)
    run_all(compiled, images[0])
    run_all(compiled, images[1][:1])
    for _ in range(2):
        assert_same_run(run_all(compiled, images[1]), oracle_of(model), images[1])


@pytest.mark.parametrize("num_images", [2, 3])
def test_at_once_they_never_take_each_others_residual(num_images):
    settings = {**SETTINGS, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    for seed in range(4):
        model = FLUX.build(5)
        images = images_of_one_prompt(model)[:num_images]
        for ran, image in zip(
            interleave(compile_cached(model, **settings), images, seed), images, strict=True
        ):
            assert_never_of_another(ran, model, image)
            assert any(step.hit for step in ran)


def test_at_once_with_names_hits_are_as_alone(model, images):
    compiled = compile_cached(model, **SETTINGS)
    ran = [[], []]
    for steps in zip(*images[:2], strict=True):
        for i, step in enumerate(steps):
            with dc.request(i):
                ran[i].append(run_step(compiled, step))
    for i in range(2):
        assert_same_run(ran[i], oracle_of(model), images[i])


@pytest.mark.parametrize(
    "tiny", [FLUX, pytest.param(WAN, marks=pytest.mark.slow)], ids=lambda t: t.name
)
def test_a_negative_prompt_that_requests_share(tiny):
    """Both passes of a step take the same latents object, as in the pipelines."""
    for num_requests, is_cond_first in itertools.product((2, 5), (True, False)):
        model = tiny.build(5)
        compiled = compile_cached(model, **SETTINGS)
        negative = image_of(model, tiny, seed=99)[0]
        cond = [image_of(model, tiny, seed=i) for i in range(num_requests)]
        uncond = [under(negative, image) for image in cond]
        passes = [cond, uncond] if is_cond_first else [uncond, cond]
        pairs = [list(zip(*(p[i] for p in passes), strict=True)) for i in range(num_requests)]
        ran = interleave_pairs(compiled, pairs)
        for i, place in itertools.product(range(num_requests), range(2)):
            steps = [pair[place] for pair in ran[i]]
            assert_same_run(steps, oracle_of(model, tiny), passes[place][i])
            assert any(step.hit for step in steps)


def interleave_pairs(compiled, pairs):
    """In turns that are not in step: request `i` is called at every turn that `i + 1` divides."""
    left = [list(pair) for pair in pairs]
    ran = [[] for _ in pairs]
    turn = 0
    while any(left):
        turn += 1
        for i, steps in enumerate(left):
            if steps and turn % (i + 1) == 0:
                ran[i].append([run_step(compiled, kwargs) for kwargs in steps.pop(0)])
    return ran


def test_one_seed_with_two_prompts_and_a_shared_negative_prompt():
    """Their latents begin alike; the pass before, on the same object, says whose they are."""
    model = FLUX.build(5)
    compiled = compile_cached(model, **SETTINGS)
    negative = image_of(model, seed=99)[0]
    prompts = [image_of(model, seed=i)[0] for i in range(2)]
    cond = [under(prompt, image_of(model, seed=7)) for prompt in prompts]
    for first, second in zip(*cond, strict=True):
        latents = first["hidden_states"]
        # They part slowly, and far less than they move from step to step.
        second["hidden_states"] = latents + 0.01 * latents.roll(1, 0) * (first is not cond[0][0])
    ran = [[], []]
    for steps in zip(*cond, strict=True):
        for i, step in enumerate(steps):
            run_step(compiled, step)
            unguided = at_step(negative, step["hidden_states"], step["timestep"])
            ran[i].append((run_step(compiled, unguided), unguided))
    for i in range(2):
        steps = [kwargs for _, kwargs in ran[i]]
        assert_same_run([r for r, _ in ran[i]], oracle_of(model), steps)


def rebuilt(kwargs):
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in kwargs.items()
    }


@pytest.mark.parametrize("what", ["all of it", "a part of it", "slices of it"])
def test_conditioning_made_anew_at_every_call(model, what):
    """Two requests in turns. Slices are new tensors on an old storage."""
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(2)]
    ran = [[], []]
    for steps in zip(*images, strict=True):
        for i, step in enumerate(steps):
            if what == "all of it":
                kwargs = rebuilt(step)
            elif what == "a part of it":
                kwargs = {**step, "pooled_projections": step["pooled_projections"].clone()}
            else:
                kwargs = {k: v[:] if isinstance(v, torch.Tensor) else v for k, v in step.items()}
            ran[i].append(run_step(compiled, kwargs))
            del kwargs
    for i in range(2):
        assert_same_run(ran[i], oracle_of(model), images[i])
    assert {s.request for s in dc.summary(model).steps} == {"#1", "#2"}


def test_a_part_of_the_conditioning_that_is_made_anew_is_no_reason_to_keep_state():
    model = FLUX.build(5)
    compiled = compile_cached(model, **SETTINGS)
    for seed in range(3):
        for step in image_of(model, seed=seed)[:5]:
            again = {**step, "pooled_projections": step["pooled_projections"].clone()}
            run_step(compiled, again)
        del step, again
        assert dc.summary(model).state_nbytes == 0


def test_latents_written_in_place(model, images):
    compiled = compile_cached(model, **SETTINGS)
    for image in images[:2]:
        buffer = torch.empty_like(image[0]["hidden_states"])
        ran = []
        for step in image:
            buffer.copy_(step["hidden_states"])
            ran.append(run_step(compiled, {**step, "hidden_states": buffer}))
        assert_same_run(ran, oracle_of(model), image)


@pytest.mark.parametrize(
    "inner_backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("slot", [0, 2])
def test_a_slot_of_a_batch_that_is_refilled_half_way_computes(model, inner_backend, slot):
    """A server puts a new picture, at the same noise level, in the place of one that was cancelled.
    All the rest of the batch goes on."""
    batch = image_of(model, batch=3)
    others = under(batch[0], image_of(model, seed=1, batch=3))
    mask = {"steps_computation_mask": [1, 1, 0, 0, 0, 0, 1], "steps_computation_policy": "static"}
    compiled = compile_cached(model, inner_backend, max_warmup_steps=0, **mask)
    assert [run_step(compiled, step).hit for step in batch[:5]] == [False, False, True, True, True]

    dc.reset(compiled)
    for step in batch[:4]:
        run_step(compiled, step)
    latents = batch[4]["hidden_states"].clone()
    latents[slot] = others[4]["hidden_states"][slot]
    refilled = at_step(batch[4], latents, batch[4]["timestep"])
    ran = run_step(compiled, refilled)
    assert (ran.hit, dc.summary(compiled).steps[-1].step) == (False, 0)
    with torch.no_grad():
        torch.testing.assert_close(ran.output, model(**refilled)[0], atol=1e-5, rtol=1e-4)
