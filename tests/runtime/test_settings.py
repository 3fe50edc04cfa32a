"""Every setting is a run-time value: nothing compiles after the backend has returned."""

import random

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.policy.rules.dbcache import DBCache
from oracles.dbcache import EagerOracle
from runtime.test_against_oracle import all_defaults, random_settings
from support.reads import num_reads
from support.running import compile_cached, relative_error, run_all, run_step
from support.tiny_models import FLUX, WAN, trajectory

pytestmark = pytest.mark.e2e


@pytest.fixture
def compile_counter():
    """An inner backend that counts how often it is asked to compile."""
    calls = []

    def counting(gm, example_inputs):
        calls.append(gm)
        return gm.forward

    torch._dynamo.register_backend(counting, name="counting")
    yield calls
    torch._dynamo.backends.registry._COMPILER_FNS.pop("counting")
    torch._dynamo.backends.registry._BACKENDS.pop("counting")


def steps_of(tiny, model, num_steps, seed=0, **sizes):
    sizes = {"batch": 2, "size": 3, "text_tokens": 5, **sizes}
    inputs = tiny.make_inputs(model, **sizes, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


def test_settings_change_between_any_two_steps(compile_counter):
    model = FLUX.build(6)
    torch._dynamo.reset()
    counters.clear()
    compiled = compile_cached(model, "counting")
    (first, *rest) = steps_of(FLUX, model, 50)
    run_step(compiled, first)
    num_compiled = len(compile_counter)
    assert num_compiled == dc.summary(model).graphs[0].num_compiled + 1  # and the diff
    rng = random.Random(7)
    for kwargs in rest:
        dc.configure(compiled, **{**all_defaults(), **random_settings(rng)})
        dc.configure(compiled, enabled=rng.random() < 0.9)
        run_step(compiled, kwargs)
    assert dc.summary(model).num_hits > 0
    assert len(compile_counter) == num_compiled
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["recompiles"].values()) == 0


def test_a_residual_of_another_region_is_never_used():
    model = FLUX.build(6)
    compiled = compile_cached(model, Fn_compute_blocks=1, residual_diff_threshold=1.0)
    dc.configure(compiled, max_warmup_steps=1)
    steps = steps_of(FLUX, model, 6)
    assert run_all(compiled, steps[:2])[1].hit
    dc.configure(compiled, Fn_compute_blocks=2)
    changed, after = run_all(compiled, steps[2:4])
    assert (changed.hit, changed.reason) == (False, "region changed")
    assert after.hit
    dc.configure(compiled, Bn_compute_blocks=1)
    assert run_step(compiled, steps[4]).reason == "region changed"


def test_disabled_computes_and_keeps_nothing():
    model = WAN.build(4)
    compiled = compile_cached(model, residual_diff_threshold=1.0, max_warmup_steps=1)
    steps = steps_of(WAN, model, 5)
    run_all(compiled, steps[:2])
    dc.configure(compiled, enabled=False)
    ran = run_step(compiled, steps[2])
    with torch.no_grad():
        assert relative_error(ran.output, model(**steps[2])[0]) < 1e-5
    assert (ran.hit, ran.reason) == (False, "disabled")
    assert dc.summary(model).state_nbytes == 0
    dc.configure(compiled, enabled=True)
    again = run_all(compiled, steps[3:])
    assert [r.reason for r in again] == ["nothing kept", "hit, threshold >= 1"]


@pytest.mark.parametrize(
    "tiny", [FLUX, pytest.param(WAN, marks=pytest.mark.slow)], ids=lambda t: t.name
)
def test_new_sizes_make_as_many_graphs_as_plain_compile(tiny):
    model = tiny.build(4)
    sizes = [{}, {"size": 4}, {"size": 5, "text_tokens": 7}, {"size": 4, "batch": 3}, {}]

    def num_graphs(backend, options):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(model, backend=backend, options=options)
        for seed, size in enumerate(sizes):
            with torch.no_grad():
                for kwargs in steps_of(tiny, model, 2, seed, **size):
                    compiled(**kwargs)
        return counters["stats"]["unique_graphs"]

    ours = num_graphs("cachedit", {"inner_backend": "eager"})
    assert not dc.summary(model).refusals
    assert ours == num_graphs("eager", None)


def test_configure_before_the_first_call_and_on_what_compile_returned():
    model = FLUX.build(5)
    dc.configure(model, Fn_compute_blocks=3)
    options = {"inner_backend": "eager", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1}
    compiled = torch.compile(model, backend="cachedit", options=options)
    run_step(compiled, steps_of(FLUX, model, 1)[0])
    assert dc.summary(compiled).graphs[0].region == (3, 4)
    model.compile(backend="cachedit", options={"inner_backend": "eager"})
    dc.configure(model, Bn_compute_blocks=0)
    assert dc.summary(model).graphs[0].region == (3, 5)


@pytest.mark.parametrize(
    ("num_blocks", "expected"), [(2, 1), (5, 1), (8, 2), (18, 4), (32, 8), (57, 8)]
)
def test_the_default_of_Fn_is_at_most_a_quarter(num_blocks, expected):  # noqa: N802
    (span,) = DBCache().spans([num_blocks])
    assert (span.start, span.stop) == (expected, num_blocks)


def test_how_often_a_step_reads_from_the_device(host_copies):
    """Timestep, diff and latents in one copy; none at all for a schedule inside a named request."""
    model = FLUX.build(5)
    compiled = compile_cached(model, Fn_compute_blocks=1, max_warmup_steps=1)
    steps = steps_of(FLUX, model, 4)
    assert [num_reads(compiled, step, host_copies) for step in steps[:3]] == [1, 1, 1]
    dc.configure(compiled, steps_computation_mask=[1, 0, 0, 0], steps_computation_policy="static")
    assert num_reads(compiled, steps[3], host_copies) == 1  # the timestep: is it a new image?
    with dc.request("a"):
        assert num_reads(compiled, steps[0], host_copies) == 0
        assert num_reads(compiled, steps[1], host_copies) == 0
        assert [s.hit for s in dc.summary(model).steps[-2:]] == [False, True]


def test_a_static_mask_goes_on_with_what_a_threshold_kept_and_not_the_other_way():
    """Of a probe that nobody reads nothing is kept."""
    model = FLUX.build(5)
    compiled = compile_cached(model, Fn_compute_blocks=1, max_warmup_steps=0)
    static = {"steps_computation_policy": "static"}
    plan = [
        ({"residual_diff_threshold": 1.0}, "new image"),
        ({"steps_computation_mask": [1, 0, 1, 0, 0, 0], **static}, "hit mask"),
        ({}, "mask"),
        ({"steps_computation_mask": None}, "nothing kept to compare with"),
        ({}, "hit, threshold >= 1"),
    ]
    for (options, reason), kwargs in zip(plan, steps_of(FLUX, model, 5), strict=True):
        dc.configure(compiled, **options)
        assert run_step(compiled, kwargs).reason == reason


def test_swapped_and_edited_weights_take_effect_at_the_next_computed_block():
    model = FLUX.build(5)
    settings = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.0, "max_warmup_steps": 0}
    compiled = compile_cached(model, **settings)
    steps = steps_of(FLUX, model, 8)
    run_step(compiled, steps[0])
    linear = model.transformer_blocks[0].ff.net[0].proj

    def edit_in_place():
        linear.weight.mul_(1.5)

    def swap():
        linear.weight = torch.nn.Parameter(linear.weight * 0.5, requires_grad=False)

    def swap_the_first():
        first = model.transformer_blocks[0].norm1.linear
        first.weight = torch.nn.Parameter(first.weight * 1.2, requires_grad=False)

    def load():
        model.load_state_dict({k: v * 0.9 for k, v in model.state_dict().items()})

    for change, kwargs in zip((edit_in_place, swap, swap_the_first, load), steps[1:], strict=False):
        with torch.no_grad():
            before = model(**kwargs)[0]
            change()
            expected = model(**kwargs)[0]
        assert relative_error(before, expected) > 1e-3
        assert relative_error(run_step(compiled, kwargs).output, expected) < 1e-5
    assert dc.summary(model).num_computed == 5


def cached_flux():
    model = FLUX.build(5)
    settings = {"Fn_compute_blocks": 1, "residual_diff_threshold": 1.0, "max_warmup_steps": 1}
    return model, compile_cached(model, **settings)


def multiply(weight):
    weight.mul_(3.0)


def multiply_in_inference_mode(weight):
    with torch.inference_mode():
        weight.mul_(3.0)


@pytest.mark.parametrize("edit", [multiply, multiply_in_inference_mode])
def test_state_of_older_weights_is_not_replayed(edit):
    model, compiled = cached_flux()
    steps = steps_of(FLUX, model, 5)
    run_all(compiled, steps[:2])
    with torch.no_grad():
        edit(model.single_transformer_blocks[1].proj_out.weight)
    oracle = EagerOracle(model, FLUX.block_lists, FLUX.stream_outputs, residual_diff_threshold=0.0)
    ran = run_step(compiled, steps[2])
    assert (ran.hit, ran.reason) == (False, "the weights changed")
    assert relative_error(ran.output, oracle.step(**steps[2]).output) < 1e-5
    assert run_step(compiled, steps[3]).hit
    with torch.no_grad():
        edit(model.proj_out.weight)  # no block reads it, so nothing that is kept depends on it
    assert run_step(compiled, steps[4]).hit


@pytest.mark.parametrize(
    "part", ["x_embedder", "context_embedder", "time_text_embed.timestep_embedder.linear_2"]
)
def test_state_of_older_weights_before_the_blocks_is_not_replayed(part):
    model, compiled = cached_flux()
    steps = steps_of(FLUX, model, 4)
    run_all(compiled, steps[:2])
    with torch.no_grad():
        multiply(model.get_submodule(part).weight)
    oracle = EagerOracle(model, FLUX.block_lists, FLUX.stream_outputs, residual_diff_threshold=0.0)
    ran = run_step(compiled, steps[2])
    assert (ran.hit, ran.reason) == (False, "the weights changed")
    assert relative_error(ran.output, oracle.step(**steps[2]).output) < 1e-5
    assert run_step(compiled, steps[3]).hit


def test_a_swapped_weight_is_told_from_one_that_moved():
    model, compiled = cached_flux()
    steps = steps_of(FLUX, model, 6)
    run_all(compiled, steps[:2])
    linear = model.single_transformer_blocks[1].proj_out
    linear.weight = torch.nn.Parameter(linear.weight * 3, requires_grad=False)
    assert run_step(compiled, steps[2]).reason == "the weights changed"
    assert run_step(compiled, steps[3]).hit
    # As offloading does: the same parameter elsewhere.
    model._apply(torch.clone)
    assert run_step(compiled, steps[4]).hit


def test_state_is_dropped_by_reset_where_a_write_is_not_counted():
    model, compiled = cached_flux()
    steps = steps_of(FLUX, model, 4)
    run_all(compiled, steps[:2])
    model.single_transformer_blocks[1].proj_out.weight.data.mul_(3.0)
    assert run_step(compiled, steps[2]).hit
    dc.reset(compiled)
    oracle = EagerOracle(model, FLUX.block_lists, FLUX.stream_outputs, residual_diff_threshold=0.0)
    ran = run_step(compiled, steps[3])
    assert (ran.hit, ran.reason) == (False, "warmup")
    assert relative_error(ran.output, oracle.step(**steps[3]).output) < 1e-5


def test_weights_made_in_inference_mode():
    """Torch counts no writes to them; a swap is seen all the same."""
    with torch.inference_mode():
        model, compiled = cached_flux()
        steps = steps_of(FLUX, model, 4)
        assert [r.hit for r in run_all(compiled, steps[:2])] == [False, True]
        linear = model.single_transformer_blocks[1].proj_out
        linear.weight = torch.nn.Parameter(linear.weight * 3, requires_grad=False)
        assert run_step(compiled, steps[2]).reason == "the weights changed"
        assert run_step(compiled, steps[3]).hit
