"""`params_modifiers` with one for each block list of a transformer."""

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph import ParamsModifier
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, trajectory

DEPTH = 4
FIRST = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.3, "max_warmup_steps": 2}
SECOND = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.05, "max_warmup_steps": 4}


def steps_of(model):
    inputs = FLUX.make_inputs(model, batch=1, size=3, text_tokens=5, seed=0)
    return list(trajectory(FLUX, inputs, 12))


@torch.no_grad()
def test_each_list_goes_by_its_own():
    """As `block_lists` does, with cache-dit's defaults beside what is given."""
    model = FLUX.build(DEPTH)
    lists = [{"batch_rule": "mean", **own} for own in (FIRST, SECOND)]
    expected = run_all(compile_cached(model, block_lists=lists), steps_of(model))
    modifiers = [ParamsModifier(**FIRST), ParamsModifier(**SECOND)]
    dc.enable_cache(model, params_modifiers=modifiers)
    hits = 0
    for kwargs, ran in zip(steps_of(model), expected, strict=True):
        output = model(**kwargs)[0]
        last = dc.summary(model).steps[-1]
        assert (last.hit, last.reason) == (ran.hit, ran.reason)
        assert relative_error(output, ran.output) < 1e-5
        hits += last.hit
    assert 2 < hits < 11
    dc.disable_cache(model)


@torch.no_grad()
def test_another_number_of_them_is_refused_at_the_first_call():
    model = FLUX.build(DEPTH)
    modifiers = [ParamsModifier(**FIRST), ParamsModifier(**SECOND), ParamsModifier()]
    dc.enable_cache(model, params_modifiers=modifiers)
    with pytest.raises(dc.InvalidConfig, match="for 3 block lists, and this model has 2"):
        model(**steps_of(model)[0])
    dc.disable_cache(model)


@torch.no_grad()
def test_a_refresh_changes_each_list_and_leaves_the_rest():
    """As cache-dit does it: beside `max_warmup_steps`, each list keeps what it was given."""
    model = FLUX.build(DEPTH)
    dc.enable_cache(model, params_modifiers=[ParamsModifier(**FIRST), ParamsModifier(**SECOND)])
    dc.refresh_context(model, max_warmup_steps=6, num_inference_steps=12)
    dc.refresh_context(model, calibrator_config=dc.TaylorSeerCalibratorConfig(taylorseer_order=2))
    changed = {"batch_rule": "mean", "max_warmup_steps": 6, "taylorseer_order": 2}
    lists = [{**own, **changed} for own in (FIRST, SECOND)]
    other = FLUX.build(DEPTH)
    expected = run_all(
        compile_cached(other, block_lists=lists, num_inference_steps=12), steps_of(other)
    )
    for kwargs, ran in zip(steps_of(model), expected, strict=True):
        output = model(**kwargs)[0]
        last = dc.summary(model).steps[-1]
        assert (last.hit, last.reason) == (ran.hit, ran.reason)
        assert relative_error(output, ran.output) < 1e-5
    hits = [step.step for step in dc.summary(model).steps if step.hit]
    assert hits and min(hits) >= 6
    dc.disable_cache(model)
