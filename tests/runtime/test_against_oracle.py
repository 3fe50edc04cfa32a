"""Decisions and outputs at every step against an eager oracle, over random settings."""

import itertools
import random

import pytest
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from oracles.dbcache import EagerOracle
from support.running import assert_same_run, compile_cached, run_all
from support.tiny_models import FLUX, TINY_MODELS, WAN, trajectory

pytestmark = pytest.mark.e2e

DEPTH = 6
NUM_STEPS = 11
NUM_SETTINGS = 36  # a model; six models: 216


# Two lists of unlike blocks, and one list: the others are of these kinds.
TINY = pytest.mark.parametrize(
    "tiny",
    [pytest.param(t, marks=[] if t in (FLUX, WAN) else [pytest.mark.slow]) for t in TINY_MODELS],
    ids=lambda t: t.name,
)


def random_settings(rng: random.Random) -> dict[str, object]:
    """All options at once, each left at its default about half of the time."""
    first = rng.randint(1, DEPTH - 1)
    settings: dict[str, object] = {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": rng.choice([0, 0, rng.randint(0, DEPTH - first)]),
        "residual_diff_threshold": rng.choice([0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0, 2.0]),
        "max_warmup_steps": rng.randint(0, 4),
        "batch_rule": rng.choice(["max", "mean"]),
    }
    if rng.random() < 0.3:
        settings["warmup_interval"] = rng.randint(1, 3)
    if rng.random() < 0.3:
        settings["max_cached_steps"] = rng.randint(0, 5)
    if rng.random() < 0.4:
        settings["max_continuous_cached_steps"] = rng.randint(0, 3)
    if rng.random() < 0.3:
        settings["max_accumulated_residual_diff_threshold"] = rng.choice([0.0, 0.2, 0.6, 2.0])
    if rng.random() < 0.4:
        mask = [rng.randint(0, 1) for _ in range(rng.randint(1, NUM_STEPS + 1))]
        settings["steps_computation_mask"] = mask
        settings["steps_computation_policy"] = rng.choice(["static", "dynamic"])
    return settings


def all_defaults() -> dict[str, object]:
    """Every option back at its default: `configure` keeps what it isn't given."""
    return {
        "Fn_compute_blocks": None,
        "Bn_compute_blocks": 0,
        "residual_diff_threshold": 0.08,
        "max_accumulated_residual_diff_threshold": None,
        "max_warmup_steps": 8,
        "warmup_interval": 1,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": -1,
        "steps_computation_mask": None,
        "steps_computation_policy": "dynamic",
        "batch_rule": "max",
    }


@TINY
def test_every_step_equals_the_oracle(tiny):
    rng = random.Random(tiny.name)
    model = tiny.build(DEPTH)
    compiled = compile_cached(model)
    counters.clear()
    num_hits = 0
    for image in range(NUM_SETTINGS):
        settings = random_settings(rng)
        dc.configure(compiled, **{**all_defaults(), **settings})
        inputs = tiny.make_inputs(model, batch=2, size=3, text_tokens=5, seed=image)
        steps = list(trajectory(tiny, inputs, NUM_STEPS, seed=image))
        ran = run_all(compiled, steps)
        oracle = EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **settings)
        assert_same_run(ran, oracle, steps)
        num_hits += sum(r.hit for r in ran)
    assert counters["stats"]["unique_graphs"] == 1
    assert num_hits > NUM_SETTINGS  # the settings really reuse


@pytest.mark.parametrize("batches", [(2,), pytest.param((1, 3), marks=pytest.mark.slow)], ids=str)
@TINY
def test_diffs_equal_the_oracles(tiny, batches):
    """The number itself, at every step that records one."""
    model = tiny.build(DEPTH)
    settings = {"Fn_compute_blocks": 2, "residual_diff_threshold": 0.2, "max_warmup_steps": 2}
    compiled = compile_cached(model, **settings)
    for batch, rule in itertools.product(batches, ("max", "mean")):
        inputs = tiny.make_inputs(model, batch=batch, size=3, text_tokens=5, seed=batch)
        steps = list(trajectory(tiny, inputs, 8, seed=1))
        dc.configure(compiled, batch_rule=rule)
        ran = run_all(compiled, steps)
        oracle = EagerOracle(
            model, tiny.block_lists, tiny.stream_outputs, **settings, batch_rule=rule
        )
        expected = [oracle.step(**kwargs).diff for kwargs in steps]
        assert [r.diff is None for r in ran] == [d is None for d in expected]
        assert [r.diff for r in ran if r.diff is not None] == pytest.approx(
            [d for d in expected if d is not None], rel=1e-4
        )
