"""Every predictor on compiled models, step by step as an eager reference, and switched at run time
on one of them."""

import math

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.policy.catalog import PREDICTORS as PREDICTORS_BY_NAME
from oracles.forecast import ForecastOracle
from support.reads import num_reads
from support.running import compile_cached, relative_error, run_all, run_step
from support.tiny_models import FLUX, SD3, WAN, trajectory
from support.toy_dits import adding_dit, toy_inputs

pytestmark = pytest.mark.e2e

EVEN = {"rule": "even", "every": 3, "max_warmup_steps": 2}
NUM_STEPS = 15
COMPUTED_BY_EVEN = (0, 1, 4, 7, 10, 13)
# Uneven gaps between the computed steps, and both streams leave the region.
MASK = (1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0)
BY_MASK = {
    "rule": "dbcache",
    "steps_computation_mask": MASK,
    "steps_computation_policy": "static",
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 1,
    "max_warmup_steps": 0,
}
PREDICTORS = [
    ("replay", {}),
    *[("taylorseer", {"taylorseer_order": order}) for order in range(5)],
    ("foca", {}),
    ("hicache", {}),
    ("hicache", {"hicache_order": 4, "hicache_sigma": 0.8}),
    ("chebyshev", {}),
    ("chebyshev", {"chebyshev_degree": 2, "chebyshev_history": 3}),
    ("damped_line", {}),
    ("damped_line", {"damped_line_least": 0.0}),
    ("dmd", {}),
    ("dmd", {"dmd_rank": 1, "dmd_svd_precision": "high"}),
]
STREAMS = [
    {"calibrator_cache_type": kind, "enable_encoder_calibrator": is_for_all}
    for kind in ("residual", "hidden_states")
    for is_for_all in (True, False)
]


def steps_of(tiny, model, seed, num_steps=NUM_STEPS, batch=2):
    inputs = tiny.make_inputs(model, batch=batch, size=3, text_tokens=5, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


def assert_as_reference(compiled, reference, steps, tolerance=1e-5):
    reference.new_image()
    for i, (ran, kwargs) in enumerate(zip(run_all(compiled, steps), steps, strict=True)):
        expected = reference.step(**kwargs)
        assert ran.hit == expected.hit, f"step {i}: {ran.reason}"
        assert relative_error(ran.output, expected.output) < tolerance, f"step {i}: {ran.reason}"


def check_predictors(tiny, rule, streams_of):
    """Each of them on one compiled model; `streams_of(i)` are the ways in which to run the i-th."""
    model = tiny.build(5)
    even = rule is EVEN
    mask = [int(i in COMPUTED_BY_EVEN) for i in range(NUM_STEPS)] if even else MASK
    compiled = compile_cached(model, **rule)
    reference = ForecastOracle(model, tiny, mask, *((0, 0) if even else (1, 1)))
    for i, (name, options) in enumerate(PREDICTORS):
        for streams in [{}] if name == "replay" else streams_of(i):
            dc.configure(compiled, predictor=name, **options, **streams)
            reference.use(name, {**options, **streams})
            assert_as_reference(compiled, reference, steps_of(tiny, model, i))
    assert not dc.summary(model).refusals


@pytest.mark.parametrize(
    "tiny", [FLUX, WAN, pytest.param(SD3, marks=pytest.mark.slow)], ids=lambda t: t.name
)
@pytest.mark.parametrize("rule", [EVEN, BY_MASK], ids=lambda rule: rule["rule"])
def test_every_predictor_as_an_eager_reference(tiny, rule):
    """Residuals or hidden states, with the text's stream or without it, one after another."""
    offset = (FLUX, WAN, SD3).index(tiny)
    check_predictors(tiny, rule, lambda i: [STREAMS[(i + offset) % len(STREAMS)]])


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [FLUX, SD3], ids=lambda t: t.name)
def test_every_predictor_in_every_way_as_an_eager_reference(tiny):
    check_predictors(tiny, BY_MASK, lambda _: STREAMS)


def test_switched_at_run_time_on_one_compiled_model():
    """No graph is compiled for it, and none reads what another one kept."""
    torch._dynamo.reset()
    model = FLUX.build(5)
    torch._dynamo.reset()
    counters.clear()
    compiled = compile_cached(model, **EVEN)
    num_steps = 6 * (len(PREDICTORS) + 1)
    schedule = [0, 1, *range(4, num_steps, 3)]
    reference = ForecastOracle(model, FLUX, [int(i in schedule) for i in range(num_steps)], 0, 0)
    steps = iter(enumerate(steps_of(FLUX, model, 0, num_steps=num_steps)))
    reasons = []
    for name, options in PREDICTORS:
        dc.configure(compiled, predictor=name, **options)
        reference.use(name, options)
        for i, kwargs in steps:
            ran, expected = run_step(compiled, kwargs), reference.step(**kwargs)
            assert ran.hit == expected.hit, f"step {i}: {ran.reason}"
            assert relative_error(ran.output, expected.output) < 1e-5, f"step {i}: {ran.reason}"
            reasons.append(ran.reason)
            # Switch where the next step would be a hit.
            if len(reasons) % 6 == 0:
                break
    assert reasons[6::6] == ["predictor changed"] * (len(PREDICTORS) - 1)
    assert reasons.count("predictor changed") == len(PREDICTORS) - 1
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["recompiles"].values()) == 0


def test_a_request_has_a_predictor_of_its_own():
    model = WAN.build(4)
    compiled = compile_cached(model, **EVEN, predictor="taylorseer")
    mask = [int(i in COMPUTED_BY_EVEN) for i in range(9)]
    options = [("foca", {}), ("hicache", {"hicache_order": 1})]
    images = [steps_of(WAN, model, seed, num_steps=9) for seed in range(2)]
    references = [ForecastOracle(model, WAN, mask, 0, 0) for _ in images]
    for reference, (name, own) in zip(references, options, strict=True):
        reference.use(name, own)
    for both in zip(*images, strict=True):
        for reference, (name, own), kwargs in zip(references, options, both, strict=True):
            with dc.request(name, predictor=name, **own):
                ran = run_step(compiled, kwargs)
            expected = reference.step(**kwargs)
            assert ran.hit == expected.hit
            assert relative_error(ran.output, expected.output) < 1e-5


def test_within_a_request_nothing_is_read(host_copies):
    model = WAN.build(4)
    compiled = compile_cached(model, **EVEN)
    for i, name in enumerate(PREDICTORS_BY_NAME):
        with dc.request(name, predictor=name):
            steps = steps_of(WAN, model, i)
            reads = [num_reads(compiled, kwargs, host_copies) > 0 for kwargs in steps]
        assert reads == [False] * NUM_STEPS, name


NUM_KEPT = [
    ("replay", {}, 1),
    ("taylorseer", {"taylorseer_order": 0}, 1),
    ("taylorseer", {"taylorseer_order": 4}, 5),
    ("foca", {}, 3),
    ("hicache", {}, 3),
    ("chebyshev", {"chebyshev_history": 4}, 4),
    ("dmd", {}, 6),
]


def test_bytes_are_snapshots_times_streams():
    model = FLUX.build(5)
    compiled = compile_cached(model, **BY_MASK)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    hidden, text = (2 * num_tokens * width * 4 for num_tokens in (9, 5))
    for seed, (name, options, num_kept) in enumerate(NUM_KEPT):
        for is_for_all in (True,) if name == "replay" else (True, False):
            own = {} if name == "replay" else {"enable_encoder_calibrator": is_for_all}
            dc.configure(compiled, predictor=name, **options, **own)
            held = []
            for kwargs in steps_of(FLUX, model, seed):
                run_step(compiled, kwargs)
                held.append(dc.summary(model).state_nbytes)  # No mask reads a probe.
            expected = num_kept * hidden + (num_kept if is_for_all else 1) * text
            assert held[0] == hidden + text, name
            assert held[-1] == max(held) == expected, name


def closed_form_steps(effect, num_steps):
    """The steps of one image whose blocks add multiples of `effect(step)`, which falls from 1."""
    first, last = toy_inputs(0.0), toy_inputs(0.0, seed=1)
    text = first["encoder_hidden_states"]
    for step in range(num_steps):
        degrees = math.degrees(math.asin(effect(step)))
        yield {
            "hidden_states": torch.lerp(first["hidden_states"], last["hidden_states"], step / 20),
            "timestep": torch.full((2,), degrees),
            "encoder_hidden_states": text,
        }


def line(step):
    return 1 - step / 16


def parabola(step):
    return (1 - step / 16) ** 2


def decay(step):
    return 0.8**step


CLOSED_FORMS = [
    # What is drawn from the last computed step `s` and those before it, `k` steps on.
    ("replay", {}, line, lambda s, k: line(s)),
    ("taylorseer", {"taylorseer_order": 1}, line, lambda s, k: line(s + k)),
    # The slope is that in the middle of the last gap, of three steps.
    ("taylorseer", {"taylorseer_order": 2}, parabola, lambda s, k: parabola(s + k) - 3 * k / 256),
    ("foca", {}, line, lambda s, k: line(s + k)),
    ("dmd", {}, decay, lambda s, k: decay(s + k)),
    # sigma H_1(sigma k) is 2 sigma^2 k: half the way at sigma 0.5.
    ("hicache", {"hicache_order": 1}, line, lambda s, k: line(s + k / 2)),
    ("chebyshev", {"chebyshev_ridge": 0}, parabola, lambda s, k: parabola(s + k)),
]


@pytest.mark.parametrize(("name", "options", "effect", "forecast"), CLOSED_FORMS)
def test_a_stream_whose_answer_is_known(name, options, effect, forecast):
    """proj_out(2x + sum of steps * sin t), all of the sum in the region."""
    model = adding_dit(1.0, 2.0, 3.0)
    compiled = torch.compile(
        model,
        backend="cachedit",
        options={"inner_backend": "eager", **EVEN, "predictor": name, **options},
    )
    last, num_forecast = 0, 0
    for step, inputs in enumerate(closed_form_steps(effect, NUM_STEPS)):
        with torch.no_grad():
            output = compiled(**inputs)
        if step in COMPUTED_BY_EVEN:
            last, expected = step, effect(step)
        elif last < 10 and name != "replay":
            continue  # Not all have as many values as they take.
        else:
            expected, num_forecast = forecast(last, step - last), num_forecast + 1
        sines = (output - inputs["hidden_states"]) / 3.0
        torch.testing.assert_close(sines, torch.full_like(sines, expected), rtol=1e-4, atol=2e-5)
    assert num_forecast >= 3
    assert dc.summary(model).num_hits == NUM_STEPS - len(COMPUTED_BY_EVEN)
