"""DBPrune on real models: which blocks are pruned and what comes out, step by step, against an
eager oracle; what it costs in copies and bytes."""

import math
import random
from dataclasses import asdict

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.rule import History, Observation
from dit_cachegraph.policy.rules.dbprune import DBPrune
from oracles.dbprune import PruneOracle, PruneSettings
from support.running import compile_cached, relative_error
from support.tiny_models import FLUX, SD3, WAN, trajectory

DEPTH, NUM_STEPS = 6, 9
SOME = [FLUX, *(pytest.param(tiny, marks=pytest.mark.slow) for tiny in (WAN, SD3))]


def random_settings(rng: random.Random) -> dict[str, object]:
    """All options at once, most at their defaults."""
    settings: dict[str, object] = {
        "Fn_compute_blocks": rng.randint(1, 3),
        "Bn_compute_blocks": rng.choice([0, 0, 1, 3]),
        "residual_diff_threshold": rng.choice([0.0, 0.1, 0.2, 0.3, 0.5, 2.0]),
        "max_warmup_steps": rng.randint(0, 3),
        "batch_rule": rng.choice(["max", "mean"]),
        "downsample_factor": rng.choice([1, 1, 2, 3]),
        "non_prune_block_ids": tuple(rng.sample(range(DEPTH), rng.choice([0, 0, 1, 2]))),
        "enable_dynamic_prune_threshold": rng.random() < 0.4,
        "max_dynamic_prune_threshold": rng.choice([None, 0.4, 1.0]),
    }
    optional = {
        "max_cached_steps": rng.randint(0, 4),
        "max_continuous_cached_steps": rng.randint(0, 3),
        "max_accumulated_residual_diff_threshold": rng.choice([0.1, 0.6, 2.0]),
        "steps_computation_mask": tuple(rng.randint(0, 1) for _ in range(rng.randint(1, 10))),
        "steps_computation_policy": rng.choice(["static", "dynamic"]),
        "dynamic_prune_threshold_relax_ratio": rng.choice([0.8, 1.25, 2.0]),
    }
    return settings | {name: v for name, v in optional.items() if rng.random() < 0.3}


def pruned_at(step) -> tuple[int, ...]:
    return tuple(i for start, stop in step.skipped for i in range(start, stop))


def assert_equals_the_oracle(tiny, num_settings: int, seed: str) -> None:
    rng = random.Random(seed)
    model = tiny.build(DEPTH)
    compiled = compile_cached(model, rule="dbprune")
    torch._dynamo.reset()
    counters.clear()
    num_pruned = 0
    for image in range(num_settings):
        settings = random_settings(rng)
        dc.configure(compiled, **{**asdict(PruneSettings()), **settings})
        inputs = tiny.make_inputs(model, batch=2, size=3, text_tokens=5, seed=image)
        oracle = PruneOracle(model, tiny, **settings)
        for i, kwargs in enumerate(trajectory(tiny, inputs, NUM_STEPS, seed=image)):
            with torch.no_grad():
                actual = compiled(**kwargs)[0]
            expected, pruned = oracle.step(**kwargs)
            last = dc.summary(compiled).steps[-1]
            assert pruned_at(last) == pruned, f"step {i} of {settings}: {last.reason}"
            assert last.hit == bool(pruned)
            assert relative_error(actual, expected) < 1e-5, f"step {i} of {settings}"
            num_pruned += len(pruned)
    assert counters["stats"]["unique_graphs"] == 1
    assert num_pruned > 2 * num_settings


@pytest.mark.parametrize("tiny", SOME, ids=lambda tiny: tiny.name)
def test_every_step_equals_the_oracle(tiny):
    assert_equals_the_oracle(tiny, 16, "a few")


@pytest.mark.slow
@pytest.mark.parametrize("tiny", SOME, ids=lambda tiny: tiny.name)
def test_two_hundred_settings_equal_the_oracle(tiny):
    assert_equals_the_oracle(tiny, 70, "many")


def test_a_copy_for_each_block_that_may_be_pruned_and_none_for_others(host_copies):
    model = FLUX.build(DEPTH)
    settings = {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "non_prune_block_ids": (3,)}
    compiled = compile_cached(model, rule="dbprune", max_warmup_steps=2, **settings)
    dc.configure(compiled, residual_diff_threshold=0.2)
    inputs = FLUX.make_inputs(model, batch=1, size=3, text_tokens=5, seed=0)
    copies = []
    with torch.no_grad(), dc.request("A"):
        for kwargs in trajectory(FLUX, inputs, 5):
            compiled(**kwargs)
            copies.append(len(host_copies))
            host_copies.clear()
    # Blocks 2 and 4 may be pruned; in the warm-up only the copy with the timestep is made.
    assert copies == [1, 1, 2, 2, 2]


def test_state_is_an_input_and_the_residuals_of_each_block():
    model = SD3.build(DEPTH)
    compiled = compile_cached(model, rule="dbprune", Fn_compute_blocks=1, max_warmup_steps=1)
    inputs = SD3.make_inputs(model, batch=2, size=4, text_tokens=6, seed=0)
    with torch.no_grad():
        compiled(**inputs)
    width = 32
    hidden, text = 2 * 16 * width * 4, 2 * 6 * width * 4
    # The last block of SD3 leaves no text.
    assert dc.summary(compiled).state_nbytes == (DEPTH - 1) * (2 * hidden + text) - text


def test_a_limit_never_ends_the_reuse_within_a_step():
    """In cache-dit the first block that is pruned reaches the limit for the others of its step."""
    model = FLUX.build(DEPTH)
    compiled = compile_cached(
        model, rule="dbprune", Fn_compute_blocks=1, residual_diff_threshold=2.0,
        max_warmup_steps=1, max_cached_steps=1,
    )  # fmt: skip
    inputs = FLUX.make_inputs(model, batch=1, size=3, text_tokens=5, seed=0)
    with torch.no_grad():
        for kwargs in trajectory(FLUX, inputs, 3):
            compiled(**kwargs)
    assert [pruned_at(s) for s in dc.summary(compiled).steps] == [(), (1, 2, 3, 4, 5), ()]


@pytest.mark.parametrize(
    ("threshold", "moved", "hit"), [(1, 5.0, True), (0.99, 5.0, False), (1, math.inf, False)]
)
def test_a_threshold_of_one_reuses_whatever_is_finite(threshold, moved, hit):
    seen = Observation(moved=(moved,), size=(2.0,))
    rule = DBPrune(residual_diff_threshold=threshold)
    assert rule.decide(History(step=9), seen).hit is hit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"Fn_compute_blocks": 4, "Bn_compute_blocks": 3}, "is more than the 6 blocks"),
        ({"non_prune_block_ids": (6,)}, "non_prune_block_ids has 6, and this model has the blocks"),
    ],
)
def test_blocks_that_are_not_there(options, sentence):
    with pytest.raises(InvalidConfig, match=sentence):
        DBPrune(**options).spans([2, 4])


@pytest.mark.parametrize("ids", [(), (0,), (0, 1)])
def test_last_blocks_do_not_decide_alone(ids):
    """Each block does that here, but for the first and the last ones and those that are named."""
    settings = {"Bn_compute_blocks": 2, "Bn_compute_blocks_ids": ids}
    with pytest.raises(InvalidConfig, match="is an option of DBCache alone, leave it out: DBPrune"):
        DBPrune(**settings)
    # Also where it comes from the layer of another rule, until it is taken back there.
    resolve(settings)
    with pytest.raises(InvalidConfig, match="name those that always run in non_prune_block_ids"):
        resolve(settings, {"rule": "dbprune"})
    without = resolve(settings, {"rule": "dbprune", "Bn_compute_blocks_ids": None})
    assert [span.start for span in without.rule.spans([6])] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_dynamic_prune_threshold", 1),
        ("max_dynamic_prune_threshold", -1),
        ("dynamic_prune_threshold_relax_ratio", None),
        ("non_prune_block_ids", (-1,)),
        ("force_reduce_calibrator_vram", None),
        ("Fn_compute_blocks", 0),
    ],
)
def test_bad_values_are_named(name, value):
    with pytest.raises(InvalidConfig, match=f"{name} must be"):
        DBPrune(**{name: value})
