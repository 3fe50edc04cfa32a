"""Whose state is it: each request's outputs and decisions are those it has alone."""

import random
import threading

import pytest
import torch

import dit_cachegraph as dc
from oracle import EagerOracle
from running import assert_same_run, compile_cached, run_all, run_step
from tiny_models import FLUX, WAN, at_step, build_flux, trajectory

pytestmark = pytest.mark.e2e

SETTINGS = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.25, "max_warmup_steps": 2}
NUM_STEPS = 9


@pytest.fixture
def model():
    return FLUX.build(5)


def oracle_of(model, tiny=FLUX, **settings):
    return EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **{**SETTINGS, **settings})


def image_of(model, tiny=FLUX, seed=0, batch=2, size=3, text_tokens=5, num_steps=NUM_STEPS):
    inputs = tiny.make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


def interleave(compiled, images, seed=0):
    """Run the steps of several images in random order; returns each image's own run."""
    rng = random.Random(seed)
    left = [list(image) for image in images]
    ran = [[] for _ in images]
    while any(left):
        i = rng.choice([i for i, image in enumerate(left) if image])
        ran[i].append(run_step(compiled, left[i].pop(0)))
    return ran


@pytest.mark.parametrize("num_requests", [2, 5])
def test_interleaved_requests(model, num_requests):
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(num_requests)]
    for ran, image in zip(interleave(compiled, images), images, strict=True):
        assert_same_run(ran, oracle_of(model), image)
        assert sum(r.hit for r in ran) >= 2


def test_interleaved_requests_that_share_position_ids_and_pooled_text(model):
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(3)]
    shared = {k: images[0][0][k] for k in ("img_ids", "txt_ids", "guidance", "pooled_projections")}
    images = [[{**step, **shared} for step in image] for image in images]
    for ran, image in zip(interleave(compiled, images), images, strict=True):
        assert_same_run(ran, oracle_of(model), image)


def test_two_images_with_the_same_prompt_object(model):
    compiled = compile_cached(model, **SETTINGS)
    first = image_of(model, seed=0)
    second = [
        at_step(first[0], step["hidden_states"], step["timestep"])
        for step in image_of(model, seed=1)
    ]
    for image in (first, second):
        assert_same_run(run_all(compiled, image), oracle_of(model), image)


@pytest.mark.parametrize("num_steps_before", range(1, 7))
def test_an_aborted_image_leaves_nothing_for_the_next(model, num_steps_before):
    """The cost: from the step at which the aborted image could have gone on, all are computed."""
    compiled = compile_cached(model, **SETTINGS, max_continuous_cached_steps=2)
    first = image_of(model, seed=0)
    run_all(compiled, first)
    run_all(compiled, first[:num_steps_before])
    ran = run_all(compiled, first)
    mask = [1 if i < 2 or i >= num_steps_before else 0 for i in range(NUM_STEPS)]
    oracle = oracle_of(model, max_continuous_cached_steps=2, steps_computation_mask=mask)
    assert_same_run(ran, oracle, first)
    assert "ambiguous" in ran[num_steps_before].reason


def test_an_abort_in_the_first_image_of_all(model):
    """The direction of the schedule isn't known yet: an abort after one step is no error."""
    compiled = compile_cached(model, **{**SETTINGS, "max_warmup_steps": 1})
    image = image_of(model, seed=0)
    aborted = image_of(model, seed=1)[3]
    run_step(compiled, at_step(image[0], aborted["hidden_states"], aborted["timestep"]))
    ran = run_all(compiled, image)
    assert [r.reason for r in ran[:2]] == ["direction of the schedule unknown"] * 2
    mask = [1, 1] + [0] * (NUM_STEPS - 2)
    assert_same_run(ran, oracle_of(model, max_warmup_steps=1, steps_computation_mask=mask), image)


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda t: t.name)
def test_guidance_as_two_passes(tiny):
    model = tiny.build(5)
    compiled = compile_cached(model, **SETTINGS)
    cond, uncond = (image_of(model, tiny, seed=i) for i in range(2))
    # Both branches see the same latents object at each step, as in the pipelines.
    uncond = [
        {**u, "hidden_states": c["hidden_states"], "timestep": c["timestep"]}
        for c, u in zip(cond, uncond, strict=True)
    ]
    ran = [
        (run_step(compiled, c), run_step(compiled, u)) for c, u in zip(cond, uncond, strict=True)
    ]
    assert_same_run([c for c, _ in ran], oracle_of(model, tiny), cond)
    assert_same_run([u for _, u in ran], oracle_of(model, tiny), uncond)
    assert len({s.request for s in dc.summary(model).steps}) == 2


def test_guidance_as_one_batch(model):
    compiled = compile_cached(model, **SETTINGS)
    cond, uncond = (image_of(model, seed=i) for i in range(2))
    conditioning = {
        k: torch.cat([cond[0][k], uncond[0][k]])
        for k in ("encoder_hidden_states", "pooled_projections", "guidance")
    }
    both = [
        {
            **c,
            **conditioning,
            "hidden_states": torch.cat([c["hidden_states"]] * 2),
            "timestep": torch.cat([c["timestep"]] * 2),
        }
        for c in cond
    ]
    assert_same_run(run_all(compiled, both), oracle_of(model), both)
    assert {s.request for s in dc.summary(model).steps} == {"#1"}


def test_a_new_resolution_in_mid_run(model):
    compiled = torch.compile(
        model, backend="cachedit", options={"inner_backend": "eager", **SETTINGS}
    )
    images = [image_of(model, seed=0), image_of(model, seed=1, size=4), image_of(model, seed=2)]
    for ran, image in zip(interleave(compiled, images), images, strict=True):
        assert_same_run(ran, oracle_of(model), image)


def test_two_models_of_one_class_with_settings_of_their_own():
    """Dynamo compiles them once and calls one driver for both."""
    models = [build_flux(2, 3, seed=i) for i in range(2)]
    compiled = [compile_cached(m, **SETTINGS) for m in models]
    dc.configure(compiled[1], Fn_compute_blocks=2, residual_diff_threshold=0.4)
    own = [{}, {"Fn_compute_blocks": 2, "residual_diff_threshold": 0.4}]
    steps = image_of(models[0])
    # As Wan 2.2: one expert takes over in mid-run, and back; all with the same prompt object.
    ran = [[run_step(c, step) for c in compiled] for step in steps]
    for i in range(2):
        assert_same_run([r[i] for r in ran], oracle_of(models[i], **own[i]), steps)
    first, second = (dc.summary(m) for m in models)
    assert first.num_hits + first.num_computed == second.num_hits + second.num_computed == NUM_STEPS
    assert first.graphs[0].region == (1, 5)
    assert second.graphs[0].region == (2, 5)


def test_requests_by_name_share_the_very_same_conditioning(model):
    compiled = compile_cached(model, **SETTINGS)
    first = image_of(model, seed=0)
    second = [
        at_step(first[0], step["hidden_states"], step["timestep"])
        for step in image_of(model, seed=1)
    ]
    ran = [[], []]
    for a, b in zip(first, second, strict=True):
        with dc.request("a"):
            ran[0].append(run_step(compiled, a))
        with dc.request("b", residual_diff_threshold=0.5):
            ran[1].append(run_step(compiled, b))
    assert_same_run(ran[0], oracle_of(model), first)
    assert_same_run(ran[1], oracle_of(model, residual_diff_threshold=0.5), second)
    assert {s.request for s in dc.summary(model).steps} == {"a", "b"}


def test_threads_each_with_a_request_of_their_own(model):
    compiled = compile_cached(model, **SETTINGS)
    images = [image_of(model, seed=i) for i in range(4)]
    run_step(compiled, image_of(model, seed=9)[0])
    outputs = [[] for _ in images]

    def work(i: int) -> None:
        with torch.no_grad():
            for kwargs in images[i]:
                outputs[i].append(compiled(**kwargs)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, image in enumerate(images):
        oracle = oracle_of(model)
        for got, kwargs in zip(outputs[i], image, strict=True):
            expected = oracle.step(**kwargs).output
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_exception_in_mid_step_leaves_the_state_of_the_step_before(model):
    image = image_of(model, seed=0)
    weight = model.single_transformer_blocks[2].proj_out.weight
    compiled = compile_cached(model, **SETTINGS)
    ran = run_all(compiled, image[:4])
    before = dc.summary(model)
    good = weight.data
    weight.data = good[:, :-1]  # no longer multiplies: the block raises when it runs
    with pytest.raises(RuntimeError), dc.request("other", max_warmup_steps=99):
        run_step(compiled, image[4])
    weight.data = good
    assert dc.summary(model).num_computed == before.num_computed
    ran += run_all(compiled, image[4:])
    assert_same_run(ran, oracle_of(model), image)


def test_state_goes_with_the_tensors_of_the_request():
    model = FLUX.build(5)
    compiled = compile_cached(model, **SETTINGS)
    first, second = image_of(model, seed=0), image_of(model, seed=1)
    run_all(compiled, first)
    alone = dc.summary(model).state_nbytes
    # The probe, and a residual of the image stream: nobody reads the text after the last block.
    assert alone == 2 * first[0]["hidden_states"].shape[1] * 2 * 32 * 4
    run_all(compiled, second)
    assert dc.summary(model).state_nbytes == 2 * alone
    del first
    assert dc.summary(model).state_nbytes == alone
    dc.reset(model)
    assert dc.summary(model).state_nbytes == 0
    del second
    assert dc.summary(model).num_branches == 0


def test_reset_of_one_request(model):
    compiled = compile_cached(model, **SETTINGS)
    image = image_of(model, seed=0)
    for key in ("a", "b"):
        with dc.request(key):
            run_all(compiled, image[:3])
    both = dc.summary(model).state_nbytes
    dc.reset(model, "a")
    assert dc.summary(model).state_nbytes == both // 2
    with dc.request("a"):
        assert run_step(compiled, image[3]).reason == "warmup"
    dc.reset(model)


@pytest.mark.parametrize("seed", range(8))
def test_two_images_at_once_under_the_very_same_conditioning_never_share(model, seed):
    """Without `request(key)` they can't be told apart: then a step computes, or reuses its own."""
    settings = {**SETTINGS, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    compiled = compile_cached(model, **settings)
    images = [image_of(model, seed=i, num_steps=6) for i in range(2)]
    conditioning = images[0][0]
    images = [
        [at_step(conditioning, step["hidden_states"], first["timestep"]) for step, first in
         zip(image, images[0], strict=True)]
        for image in images
    ]  # fmt: skip
    rng, left, computed_last = random.Random(seed), [0, 0], None
    while min(left) < 6:
        i = rng.choice([i for i in range(2) if left[i] < 6])
        ran = run_step(compiled, images[i][left[i]])
        left[i] += 1
        if ran.hit:
            assert computed_last == i, f"step {left[i] - 1} of image {i}: {ran.reason}"
        else:
            computed_last = i
