"""Whose state is it: each request's outputs and decisions are those it has alone."""

import pytest
import torch

import dit_cachegraph as dc
from support.image_runs import NUM_STEPS, SETTINGS, image_of, interleave, oracle_of, under
from support.running import assert_same_run, compile_cached, relative_error, run_all, run_step
from support.tiny_models import FLUX, WAN, build_flux

pytestmark = pytest.mark.e2e


@pytest.fixture
def model():
    return FLUX.build(5)


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


@pytest.mark.parametrize("other", [{"size": 6}, {"text_tokens": 9}, {"batch": 3}], ids=str)
def test_other_sizes_that_arrive_in_mid_run(model, other):
    """Dynamo compiles the graph anew, with sizes as arguments, while requests are under way."""
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend="cachedit", options={"inner_backend": "eager", **SETTINGS}
    )
    images = [image_of(model, seed=0), image_of(model, seed=1, **other), image_of(model, seed=2)]
    for ran, image in zip(interleave(compiled, images), images, strict=True):
        assert_same_run(ran, oracle_of(model), image)
        assert any(step.hit for step in ran)
    assert len(dc.summary(model).graphs) == 2


def test_a_control_that_ends_half_way(model):
    """ControlNet's residuals: made anew at every step, then none at all, which is another graph."""
    compiled = torch.compile(
        model, backend="cachedit", options={"inner_backend": "eager", **SETTINGS}
    )
    for seed in range(2):
        image = image_of(model, seed=seed)
        width = model.inner_dim
        control = 0.1 * torch.randn(2, 16, width)
        image = [
            {**step, "controlnet_block_samples": [control * (1 + 0.01 * i)] if on else None}
            for i, step in enumerate(image)
            for on in [i < NUM_STEPS // 2]
        ]
        ran = run_all(compiled, image)
        oracle = oracle_of(model)
        for i, (step, kwargs) in enumerate(zip(ran, image, strict=True)):
            if i == NUM_STEPS // 2:
                assert step.reason == "the graph changed"
                oracle.configure(max_warmup_steps=i + 1)  # alone it computes here as well
            expected = oracle.step(**kwargs)
            if i == NUM_STEPS // 2:
                oracle.configure(max_warmup_steps=SETTINGS["max_warmup_steps"])
            if not step.hit:
                assert not expected.hit, f"step {i}: {step.reason}"
                assert relative_error(step.output, expected.output) < 1e-5
        assert any(step.hit for step in ran[: NUM_STEPS // 2])
        assert any(step.hit for step in ran[NUM_STEPS // 2 :])
    assert len({s.request for s in dc.summary(model).steps}) == 2


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
    second = under(first[0], image_of(model, seed=1))
    ran = [[], []]
    for a, b in zip(first, second, strict=True):
        with dc.request("a"):
            ran[0].append(run_step(compiled, a))
        with dc.request("b", residual_diff_threshold=0.5):
            ran[1].append(run_step(compiled, b))
    assert_same_run(ran[0], oracle_of(model), first)
    assert_same_run(ran[1], oracle_of(model, residual_diff_threshold=0.5), second)
    assert {s.request for s in dc.summary(model).steps} == {"a", "b"}


@pytest.mark.parametrize(
    "block", [i if i in (0, 2, 4) else pytest.param(i, marks=pytest.mark.slow) for i in range(5)]
)
def test_an_exception_in_any_block_leaves_the_state_of_the_step_before(block):
    model = FLUX.build(5)
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    weight = blocks[block].norm.linear.weight if block else blocks[0].norm1.linear.weight
    compiled = compile_cached(model, **SETTINGS)
    image = image_of(model, seed=0)
    ran = run_all(compiled, image[:4])
    num_computed = dc.summary(model).num_computed
    good = weight.data
    weight.data = good[:, :-1]  # no longer multiplies: the block raises when it runs
    dc.configure(model, residual_diff_threshold=0.0)
    with pytest.raises(RuntimeError):
        run_step(compiled, image[4])
    dc.configure(model, residual_diff_threshold=SETTINGS["residual_diff_threshold"])
    weight.data = good
    assert dc.summary(model).num_computed == num_computed
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
