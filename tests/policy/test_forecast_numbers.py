"""Forecasts under Inductor, where strides are a contract, and in bfloat16, summed in float32."""

import copy

import numpy as np
import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.planning.region import Effect, Region
from dit_cachegraph.policy.catalog import PREDICTORS as KINDS
from dit_cachegraph.runtime.cached_state import CachedRegion
from dit_cachegraph.runtime.replay import estimates
from oracles.predictors import forecast_of
from policy.test_forecasts import BY_MASK, PREDICTORS, STREAMS, steps_of
from runtime.test_layout import CHECKED
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, WAN

pytestmark = pytest.mark.e2e

ONE_EFFECT = (Effect(1, 0, is_hidden=True),)


@pytest.mark.parametrize(
    "tiny", [FLUX, pytest.param(WAN, marks=pytest.mark.slow)], ids=lambda t: t.name
)
def test_every_predictor_under_inductor(tiny):
    """At batch 2, with Inductor's own size checks, against segments that run in eager."""
    model = tiny.build(5)
    compiled = compile_cached(model, "inductor", inductor=CHECKED, **BY_MASK)
    eager = compile_cached(copy.deepcopy(model), **BY_MASK)
    for i, (name, options) in enumerate(PREDICTORS):
        streams = {} if name == "replay" else STREAMS[i % len(STREAMS)]
        for one in (compiled, eager):
            dc.configure(one, predictor=name, **options, **streams)
        steps = steps_of(tiny, model, i)
        both = zip(run_all(compiled, steps), run_all(eager, steps), strict=True)
        for step, (ran, expected) in enumerate(both):
            assert (ran.hit, ran.reason) == (expected.hit, expected.reason), (name, step)
            assert relative_error(ran.output, expected.output) < 1e-4, (name, options, step)
    assert dc.summary(model).num_hits == dc.summary(eager).num_hits > len(PREDICTORS)


@pytest.mark.parametrize(("name", "options"), PREDICTORS, ids=repr)
@pytest.mark.parametrize("is_whole", [False, True], ids=["residual", "hidden_states"])
def test_bfloat16_is_added_up_in_float32(name, options, is_whole):
    """From the very same bfloat16 values, in float64: one rounding of the sum, of a fit's two."""
    predictor = KINDS[name](**options)
    count = predictor.num_snapshots
    steps = [3 + 2 * i for i in range(count)]
    rng = np.random.default_rng(0)
    a, b, c, base = (torch.from_numpy(rng.normal(size=(2, 64, 16))) for _ in range(4))
    # Alike, and unlike zero: a sum that were rounded on its way would be far off.
    values = [(20 + a + b * s / 9 + c * np.sin(s / 5)).bfloat16() for s in steps]
    base = None if is_whole else base.bfloat16()
    kept = CachedRegion(None, tuple(steps), (tuple(values),))
    region = Region(0, 1, None, predictor, 0, 0, (), 0, None, ONE_EFFECT, ())
    (actual,) = estimates(region, kept, (base,), steps[-1] + 2)
    wide = np.stack([value.double().numpy() for value in values])
    effect = torch.from_numpy(forecast_of(name, options)(wide, steps, steps[-1] + 2))
    exact = effect if is_whole else base.double() + effect
    half_a_bit = 2.0**-8
    bound = half_a_bit * exact.abs() + 1e-4
    if name in ("dmd", "damped_line") and not is_whole:
        bound += half_a_bit * effect.abs()
    assert actual.dtype == torch.bfloat16
    assert ((actual.double() - exact).abs() <= bound).all()
