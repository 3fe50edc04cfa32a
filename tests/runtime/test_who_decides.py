"""How the samples of a plain batch decide, and which of them did."""

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.policy.diffs import worst_sample
from support.running import compile_cached
from support.tiny_models import FLUX, trajectory

DBCACHE = {"Fn_compute_blocks": 1, "max_warmup_steps": 1}
RULES = {
    "dbcache": {**DBCACHE, "residual_diff_threshold": 0.2},
    "teacache": {"rule": "teacache", "teacache_threshold": 0.5},
    "easycache": {"rule": "easycache", "easycache_threshold": 0.5, "max_warmup_steps": 1},
    "error control": {"error_tolerance": 0.2},
}


@pytest.fixture(scope="module")
def model():
    torch._dynamo.reset()
    return FLUX.build(4)


@torch.no_grad()
def steps_of(model, *, moves=None, batch=3, num_steps=5, **settings):
    """The steps of a batch, in which one sample moves and the others stand nearly still."""
    compiled = compile_cached(model, **settings)
    dc.reset(compiled)
    inputs = FLUX.make_inputs(model, batch=batch, size=3, text_tokens=5, seed=1)
    first = inputs["hidden_states"]
    num_before = len(dc.summary(compiled).steps)
    for step in trajectory(FLUX, inputs, num_steps, seed=1):
        latents = step["hidden_states"]
        if moves is not None:
            kept = [i for i in range(batch) if i != moves]
            latents = latents.clone()
            latents[kept] = torch.lerp(first[kept], latents[kept], 0.02)
        compiled(**{**step, "hidden_states": latents})
    return dc.summary(compiled), dc.summary(compiled).steps[num_before:]


@pytest.mark.e2e
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("moves", [0, 2])
def test_the_report_names_the_sample_that_moved_most(model, rule, moves):
    report, steps = steps_of(model, moves=moves, batch_rule="max", **RULES[rule])
    assert next(step.sample for step in steps if step.sample is not None) == moves
    assert f"(sample {moves})" in str(report)


@pytest.mark.e2e
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("batch", "batch_rule"), [(1, "max"), (3, "mean")])
def test_none_is_named_where_there_is_one_or_all_count(model, rule, batch, batch_rule):
    _, steps = steps_of(model, batch=batch, batch_rule=batch_rule, **RULES[rule])
    assert {step.sample for step in steps} == {None}


@pytest.mark.e2e
def test_errors_count_on_average_where_that_is_asked_for(model):
    tolerance = {"error_tolerance": 0.2}
    found = {}
    for batch_rule in ("max", "mean"):
        _, steps = steps_of(model, moves=1, batch_rule=batch_rule, **tolerance)
        found[batch_rule] = [s.observed_error for s in steps if s.observed_error is not None]
    assert found["mean"][0] < found["max"][0]


@pytest.mark.e2e
@pytest.mark.parametrize("rule", RULES)
def test_per_sample_takes_no_batch_without_handles(model, rule):
    with pytest.raises(dc.InvalidConfig, match=r"a batch of 3 was called without a handle"):
        steps_of(model, batch_rule="per_sample", **RULES[rule])
    _, steps = steps_of(model, batch=1, batch_rule="per_sample", **RULES[rule])
    assert len(steps) == 5


@pytest.mark.e2e
def test_per_sample_takes_any_batch_that_is_not_cached(model):
    _, steps = steps_of(model, batch_rule="per_sample", enabled=False)
    assert {step.reason for step in steps} == {"disabled"}


def test_what_is_not_finite_is_worst():
    nan = float("nan")
    assert worst_sample((0.1, nan, 0.3), (1.0, 1.0, 1.0), "max") == 1
    assert worst_sample((0.1, 0.2, 0.2), (1.0, 1.0, 1.0), "max") == 1
    assert worst_sample((0.1,), (1.0,), "max") is None
