"""Copies from the device to the host at a step, counted within `request(key)`, for every rule with
every predictor."""

import pytest

import dit_cachegraph as dc
from dit_cachegraph.policy.catalog import PREDICTORS, RULES
from support.every_rule import NUM_STEPS, ONE_REGION, PRUNED, SCHEDULES
from support.image_runs import image_of
from support.running import compile_cached, run_step
from support.tiny_models import FLUX

DEPTH = 4


def copies_of(compiled, image, host_copies, **settings) -> tuple[list[int], list[bool]]:
    """How many a step, and which steps were reused."""
    dc.configure(compiled, preset="balanced")
    dc.configure(compiled, **settings)
    counted, hits = [], []
    with dc.request(object()):
        for kwargs in image:
            host_copies.clear()
            hits.append(run_step(compiled, kwargs).hit)
            counted.append(len(host_copies))
    return counted, hits


def test_copies_a_step(host_copies):
    """Four values in a row are computed first, so that DMD fits at the first reused step."""
    model = FLUX.build(DEPTH)
    image = image_of(model, size=3, num_steps=NUM_STEPS)
    compiled = compile_cached(model, num_inference_steps=NUM_STEPS)
    for predictor in PREDICTORS:
        for rules, most in ((SCHEDULES, 0), (ONE_REGION, 1), (PRUNED, DEPTH - 1)):
            for rule, options in rules.items():
                settings = {"rule": rule, "predictor": predictor, **options}
                counted, hits = copies_of(compiled, image, host_copies, **settings)
                assert max(counted) == most, (settings, counted)
                assert any(hits), (settings, hits)
    met = {*SCHEDULES, *ONE_REGION, *PRUNED}
    assert met == set(RULES) - {"block_lists"}


@pytest.mark.parametrize("predictor", ["dmd", "taylorseer"])
def test_the_guard_reads_one_number_more_at_computed_steps(host_copies, predictor):
    model = FLUX.build(DEPTH)
    image = image_of(model, size=3, num_steps=NUM_STEPS)
    compiled = compile_cached(model, num_inference_steps=NUM_STEPS)
    settings = {"rule": "even", "every": 2, "observe_error": True, "predictor": predictor}
    counted, hits = copies_of(compiled, image, host_copies, **settings)
    assert counted == [0, *[int(not hit) for hit in hits[1:]]]
