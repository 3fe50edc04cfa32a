"""Random predictors, streams, regions and schedules on compiled models, step by step."""

import random

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from oracles.forecast import ForecastOracle
from policy.test_forecasts import steps_of
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, SD3, WAN

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DEPTH = 5
NUM_STEPS = 12
NUM_SETTINGS = 70  # a model; three models: 210


def random_predictor(rng: random.Random) -> tuple[str, dict[str, object]]:
    """All options of one, so that none is left over from before."""
    options: dict[str, dict[str, object]] = {
        "replay": {},
        "taylorseer": {"taylorseer_order": rng.randint(0, 4)},
        "foca": {},
        "damped_line": {"damped_line_least": rng.random()},
        "hicache": {"hicache_order": rng.randint(0, 4), "hicache_sigma": rng.uniform(0.3, 1.0)},
        "chebyshev": {
            "chebyshev_degree": rng.randint(0, 5),
            "chebyshev_ridge": 10 ** rng.uniform(-3, 0),
            "chebyshev_history": rng.randint(2, 8),
            "chebyshev_num_steps": rng.randint(NUM_STEPS, 50),
        },
        "dmd": {
            "dmd_history": rng.randint(4, 7),
            "dmd_rank": rng.randint(0, 3),
            "dmd_svd_precision": rng.choice(["medium", "high"]),
        },
    }
    name = rng.choice(sorted(options))
    streams: dict[str, object] = {
        "calibrator_cache_type": rng.choice(["residual", "hidden_states"]),
        "enable_encoder_calibrator": rng.random() < 0.6,
    }
    return name, {**options[name], **({} if name == "replay" else streams)}


def random_mask(rng: random.Random) -> list[int]:
    """Uneven gaps, or even ones from some step on."""
    start, gap = rng.randint(1, 3), rng.randint(1, 3)
    if rng.random() < 0.5:
        return [int(i < start or (i - start) % gap == 0) for i in range(NUM_STEPS)]
    return [int(i < start or rng.random() < 0.45) for i in range(NUM_STEPS)]


@pytest.mark.parametrize("tiny", [FLUX, WAN, SD3], ids=lambda t: t.name)
def test_every_step_equals_the_reference(tiny):
    rng = random.Random(tiny.name)
    model = tiny.build(DEPTH)
    compiled = compile_cached(model)
    torch._dynamo.reset()
    counters.clear()
    num_hits = 0
    for image in range(NUM_SETTINGS):
        name, options = random_predictor(rng)
        first, last, mask = rng.randint(1, 3), rng.randint(0, 2), random_mask(rng)
        schedule = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        ends = {"Fn_compute_blocks": first, "Bn_compute_blocks": last, "max_warmup_steps": 0}
        dc.configure(compiled, **schedule, **ends, predictor=name, **options)
        reference = ForecastOracle(model, tiny, mask, first, last)
        reference.use(name, options)
        steps = steps_of(tiny, model, image, num_steps=NUM_STEPS)
        for i, (ran, kwargs) in enumerate(zip(run_all(compiled, steps), steps, strict=True)):
            expected = reference.step(**kwargs)
            at = f"{name} {options}, mask {mask}, step {i}: {ran.reason}"
            assert ran.hit == expected.hit, at
            assert relative_error(ran.output, expected.output) < 1e-5, at
            num_hits += ran.hit
    assert counters["stats"]["unique_graphs"] == 1
    assert num_hits > 2 * NUM_SETTINGS
