"""What each predictor forecasts: as its oracle over any gaps, exact on what it should be exact on,
and never NaN."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.policy.catalog import PREDICTORS
from dit_cachegraph.policy.predictors.inner_products import inner_products
from oracles.predictors import ORACLES, forecast_of

SHAPE = (2, 3, 8)  # samples, tokens, channels
OPTIONS = {
    "replay": st.just({}),
    "taylorseer": st.fixed_dictionaries({"taylorseer_order": st.integers(0, 4)}),
    "foca": st.just({}),
    "damped_line": st.fixed_dictionaries({"damped_line_least": st.floats(0, 1)}),
    "hicache": st.fixed_dictionaries(
        {"hicache_order": st.integers(0, 4), "hicache_sigma": st.floats(0.05, 1.0)}
    ),
    "chebyshev": st.fixed_dictionaries(
        {
            "chebyshev_degree": st.integers(0, 6),
            "chebyshev_ridge": st.floats(1e-4, 1.0),
            "chebyshev_history": st.integers(1, 12),
            "chebyshev_num_steps": st.integers(20, 60),
        }
    ),
    "dmd": st.fixed_dictionaries(
        {
            "dmd_history": st.integers(4, 8),
            "dmd_rank": st.integers(0, 3),
            "dmd_svd_precision": st.sampled_from(["low", "medium", "high"]),
        }
    ),
}


@st.composite
def uneven_steps(draw, at_most=12):
    """Steps of the values, ascending, and a later one."""
    first = draw(st.integers(0, 9))
    gaps = draw(st.lists(st.integers(1, 6), max_size=at_most - 1))
    steps = list(itertools.accumulate(gaps, initial=first))
    return steps, steps[-1] + draw(st.integers(1, 6))


@st.composite
def tailed_steps(draw):
    """The same with an even tail most of the time, as DMD needs one."""
    steps, _ = draw(uneven_steps(at_most=4))
    gap = draw(st.integers(1, 4))
    steps += [steps[-1] + gap * (i + 1) for i in range(draw(st.integers(0, 6)))]
    return steps, steps[-1] + draw(st.integers(1, gap + 1))


def values_at(steps, seed: int = 0) -> Tensor:
    """Smooth in the step and unlike in each element, [steps, *SHAPE] float64."""
    rng = np.random.default_rng(seed)
    s = np.asarray(steps, float).reshape(-1, *[1] * len(SHAPE))
    amplitude, pace, phase, drift = rng.normal(size=(4, *SHAPE))
    return torch.from_numpy(amplitude * np.sin(pace * s / 9 + phase) + 1 + drift * s / 40)


def forecast(predictor, values: Tensor, steps, step) -> Tensor:
    """What a driver that kept these values would put in their place."""
    kept, steps = list(values[-predictor.num_snapshots :]), steps[-predictor.num_snapshots :]
    estimate = predictor.estimate(kept, steps, step)
    if estimate is not None:
        return estimate
    weights = predictor.weights(steps, step)
    assert len(weights) == len(kept)
    return sum(w * v for w, v in zip(weights, kept, strict=True))


def assert_near(actual: Tensor, expected, scale: float, tolerance: float) -> None:
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert error <= tolerance * scale, f"off by {error:.3g}, at {scale:.3g}"


def scale_of(predictor, values: Tensor, steps, step) -> float:
    """What the forecast is a sum of, by size: cancellation is no error of the forecast."""
    steps = steps[-predictor.num_snapshots :]
    return sum(map(abs, predictor.weights(steps, step))) * float(values.abs().max())


def test_each_has_an_oracle():
    assert set(PREDICTORS) == set(ORACLES) == set(OPTIONS)


@pytest.mark.parametrize("name", sorted(set(PREDICTORS) - {"dmd"}))
def test_as_its_oracle_over_any_gaps(name):
    @settings(max_examples=250)
    @given(uneven_steps(), OPTIONS[name], st.integers(0, 10**6))
    def check(at, options, seed):
        steps, step = at
        predictor, values = PREDICTORS[name](**options), values_at(steps, seed)
        expected = forecast_of(name, options)(values.numpy(), steps, step)
        actual = forecast(predictor, values, steps, step)
        assert_near(actual, expected, scale_of(predictor, values, steps, step), 1e-6)
        assert_near(actual, forecast(predictor, values, steps, step), 1.0, 0.0)

    check()


@settings(max_examples=250)
@given(tailed_steps(), OPTIONS["dmd"], st.integers(0, 10**6))
def test_dmd_as_its_oracle(at, options, seed):
    steps, step = at
    predictor, values = PREDICTORS["dmd"](**options), exponentials(steps, seed)
    expected = forecast_of("dmd", options)(values.numpy(), steps, step)
    actual = forecast(predictor, values, steps, step)
    scale = max(float(values.abs().max()), np.abs(expected).max())
    assert_near(actual, expected, scale, 1e-4)
    again = forecast(predictor, values, steps, step)
    assert torch.equal(torch.as_tensor(actual), torch.as_tensor(again))


def exponentials(steps, seed: int) -> Tensor:
    """Each sample a sum of one decay and one damped wave, of its own, [steps, *SHAPE]."""
    rng = np.random.default_rng(seed)
    s = np.asarray(steps, float).reshape(-1, *[1] * len(SHAPE))
    decay, damping, angle = rng.uniform(
        (0.9, 0.9, 0.15), (1.02, 1.0, 0.3), size=(SHAPE[0], 1, 1, 3)
    ).transpose(3, 0, 1, 2)
    a, b, c = rng.normal(size=(3, *SHAPE))
    waves = damping**s * (b * np.cos(angle * s) + c * np.sin(angle * s))
    return torch.from_numpy(a * decay**s + waves)


@settings(max_examples=200)
@given(st.integers(0, 12), st.integers(1, 4), st.integers(4, 8), st.integers(1, 5), st.integers())
def test_dmd_is_exact_on_sums_of_exponentials(first, gap, count, ahead, seed):
    steps = [first + gap * i for i in range(count)]
    values = exponentials([*steps, steps[-1] + ahead], seed % 2**32)
    for precision in ("low", "medium", "high"):
        predictor = PREDICTORS["dmd"](dmd_history=8, dmd_svd_precision=precision)
        actual = predictor.estimate(list(values[:-1]), steps, steps[-1] + ahead)
        assert_near(actual, values[-1], float(values.abs().max()), 1e-5)


def test_dmd_of_more_elements_than_are_sampled_or_summed_at_once():
    """The products come in two chunks, and what is not sampled has no say in the fit."""
    rng = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 1200, 1000, generator=rng)
    steps = [0, 2, 4, 6]
    values = [a * 0.9**s + 0.95**s * (b * math.cos(s / 4) + c * math.sin(s / 4)) for s in range(9)]
    kept = [values[s] for s in steps]
    spoilt = [kept[0].clone(), *kept[1:]]
    spoilt[0][0, 1] = 1e6
    for precision, is_fooled in (("low", False), ("medium", True)):
        predictor = PREDICTORS["dmd"](dmd_svd_precision=precision)
        estimate = predictor.estimate(kept, steps, 8)
        assert_near(estimate, values[8], float(values[0].abs().max()), 1e-4)
        other = predictor.estimate(spoilt, steps, 8)
        assert (not torch.equal(other[1:], estimate[1:])) == is_fooled


def test_what_is_sampled_goes_through_all_channels():
    """4096 tokens of 3072 channels: every 3072nd element is the first channel of each token."""
    values = [torch.zeros(1, 4096, 3072) for _ in range(2)]
    values[1][..., 1:] = 1.0
    products = inner_products(values, num_sampled=4096)
    assert 0.99 * 4096 < products[0, 1, 1] < 1.01 * 4096


def test_a_damped_line_of_more_elements_than_are_sampled():
    rng = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 1, 1200, 1000, generator=rng)
    values = [a, a + b, a + 1.5 * b + c]  # Half of the move came true, and another beside it.
    actual = PREDICTORS["damped_line"]().estimate(values, [0, 1, 2], 3)
    expected = forecast_of("damped_line", {})(torch.stack(values).numpy(), [0, 1, 2], 3)
    assert_near(actual, expected, float(values[-1].abs().max()), 2e-3)


MOVES = {  # What a path did in its last gap of 3 steps, after it moved by 1 in 2 steps before.
    "as promised": (1.5, 1.0),
    "half as far": (0.75, 0.5),
    "farther": (3.0, 1.0),
    "not at all": (0.0, 0.0),
    "back": (-1.0, 0.0),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_line_is_damped_by_what_came_true(move):
    moved, share = MOVES[move]
    values = torch.tensor([0.0, 1.0, 1.0 + moved]).reshape(3, 1, 1, 1).expand(3, *SHAPE)
    for least in (0.0, 0.25, 1.0):
        predictor = PREDICTORS["damped_line"](damped_line_least=least)
        actual = predictor.estimate(list(values), [4, 6, 9], 11)
        kept = least + (1 - least) * share
        assert_near(actual, values[-1] + kept * 2 * moved / 3, 1.0, 1e-6)


def test_a_line_is_damped_sample_by_sample():
    moved = torch.tensor([3.0, 0.0])[:, None, None].expand(SHAPE)  # As promised, and not at all.
    first = torch.zeros(SHAPE)
    values = [first, first + 1, first + 1 + moved]
    actual = PREDICTORS["damped_line"]().estimate(values, [0, 1, 4], 5)
    assert_near(actual, values[-1] + moved / 3, 1.0, 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_of_a_line_over_a_value_that_is_no_number_nothing_came_true(bad):
    values = [torch.full(SHAPE, float(i)) for i in range(3)]
    values[0][0, 0, 0] = bad
    actual = PREDICTORS["damped_line"]().estimate(values, [0, 1, 2], 3)
    assert_near(actual[0], values[-1][0] + 0.25, 1.0, 1e-6)
    assert_near(actual[1], values[-1][1] + 1, 1.0, 1e-6)


def test_dmd_fits_each_sample_by_itself():
    steps = [0, 2, 4, 6, 8]
    values = exponentials([*steps, 9], 3)
    alone, values = values.clone(), values.clone()
    values[:, 1] = torch.randn(values[:, 1].shape, generator=torch.Generator().manual_seed(0))
    predictor = PREDICTORS["dmd"]()
    both = [predictor.estimate(list(v[:-1]), steps, 9) for v in (alone, values)]
    assert torch.equal(both[0][0], both[1][0])
    assert_near(both[0][0], alone[-1][0], 1.0, 1e-4)


def test_a_damped_line_in_bfloat16_is_that_of_float32():
    values = values_at([0, 2, 4], 5).float()
    exact = PREDICTORS["damped_line"]().estimate(list(values), [0, 2, 4], 7)
    rounded = PREDICTORS["damped_line"]().estimate(list(values.bfloat16()), [0, 2, 4], 7)
    assert_near(rounded.float(), exact, float(exact.abs().max()), 2e-2)


@pytest.mark.parametrize("name", ["dmd", "damped_line"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 0, 8), (0, 3, 8)])
def test_a_fit_of_one_number_or_of_none(name, shape):
    """What a block counts for all samples has no dimension, and a text may have no tokens."""
    steps = [0, 3, 6, 9]
    steps = steps[-PREDICTORS[name]().num_snapshots :]
    estimate = PREDICTORS[name]().estimate([torch.full(shape, 3.0) for _ in steps], steps, 11)
    torch.testing.assert_close(estimate, torch.full(shape, 3.0))


def test_dmd_of_two_dimensions_is_one_sample():
    steps = [0, 1, 2, 3, 4]
    values = exponentials([*steps, 6], 1)[:, 0]  # [steps, tokens, channels]
    actual = PREDICTORS["dmd"]().estimate(list(values[:-1]), steps, 6)
    assert_near(actual, values[-1], float(values.abs().max()), 1e-4)


@pytest.mark.parametrize("layout", [(2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize(("name", "count"), [("dmd", 4), ("damped_line", 3)])
def test_a_fit_keeps_the_layout_and_dtype_of_a_snapshot(name, count, layout):
    steps = [0, 1, 2, 3][:count]
    values = [v.to(torch.bfloat16).permute(layout).clone() for v in exponentials(steps, 1)]
    estimate = PREDICTORS[name]().estimate(values, steps, 5)
    assert (estimate.stride(), estimate.dtype) == (values[-1].stride(), torch.bfloat16)


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("gap", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3])
def test_taylorseer_is_that_of_the_paper_over_even_gaps(order, gap, ahead):
    """F + sum of (i-th backward difference / gap^i) k^i / i!, also through the kernel."""
    steps = [2 + gap * i for i in range(order + 1)]
    values = np.random.default_rng(order).normal(size=(order + 1, 7))
    differences = [np.diff(values, n=i, axis=0)[-1] / gap**i for i in range(order + 1)]
    expected = sum(d * ahead**i / math.factorial(i) for i, d in enumerate(differences))
    predictor = PREDICTORS["taylorseer"](taylorseer_order=order)
    weights = predictor.weights(steps, steps[-1] + ahead)
    np.testing.assert_allclose(np.array(weights) @ values, expected, rtol=1e-9, atol=1e-9)
    known = torch.from_numpy(values)
    single = ops.forecast(None, list(known.float()), weights)
    scale = scale_of(predictor, known, steps, steps[-1] + ahead) + float(known.abs().max())
    assert_near(single, expected, scale, 1e-6)


@pytest.mark.parametrize("steps", [(0, 1, 2), (1, 2, 3), (0, 1, 5)])
def test_a_bend_at_the_start_of_an_image_does_not_count(steps):
    line = PREDICTORS["taylorseer"](taylorseer_order=1).weights(steps[1:], 7)
    assert PREDICTORS["taylorseer"](taylorseer_order=2).weights(steps, 7) == (0.0, *line)
    later = PREDICTORS["taylorseer"](taylorseer_order=2).weights([s + 2 for s in steps], 9)
    assert later[0] != 0


@pytest.mark.parametrize("name", ["taylorseer", "foca", "dmd", "damped_line"])
def test_exact_on_even_movement_over_uneven_gaps(name):
    """What cache-dit's own are not: FoCa forgets the gap, TaylorSeer and DMD start late."""
    two = [] if name == "damped_line" else [[0, 1]]  # It takes them for no line yet.
    for steps in (*two, [0, 1, 3, 4], [3, 5, 6, 10, 11], [0, 4, 5]):
        for step in range(steps[-1] + 1, steps[-1] + 7):
            values = torch.tensor([[2.0 - 0.5 * s] for s in steps], dtype=torch.float64)
            actual = forecast(PREDICTORS[name](), values, steps, step)
            assert_near(actual, [2.0 - 0.5 * step], abs(2.0 - 0.5 * step) + 1, 1e-9)


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_what_stands_still_is_replayed_exactly(name):
    @settings(max_examples=60)
    @given(tailed_steps(), OPTIONS[name])
    def check(at, options):
        steps, step = at
        values = torch.full((len(steps), *SHAPE), 3.25, dtype=torch.float64)
        predictor = PREDICTORS[name](**options)
        actual = forecast(predictor, values, steps, step)
        scale = scale_of(predictor, values, steps, step)
        assert_near(actual, values[-1], scale, 1e-6)

    check()


LOWER = [
    ("foca", {}, 2, "taylorseer", {}),
    ("foca", {}, 1, "replay", {}),
    ("damped_line", {"damped_line_least": 0.5}, 2, "hicache", {"hicache_order": 1}),
    ("damped_line", {}, 1, "replay", {}),
    ("dmd", {}, 3, "taylorseer", {}),
    ("dmd", {}, 1, "replay", {}),
    ("chebyshev", {}, 1, "replay", {}),
    ("hicache", {"hicache_order": 4}, 2, "hicache", {"hicache_order": 1}),
    ("hicache", {"hicache_order": 4}, 1, "replay", {}),
    ("taylorseer", {"taylorseer_order": 4}, 3, "taylorseer", {"taylorseer_order": 2}),
    ("taylorseer", {"taylorseer_order": 4}, 1, "replay", {}),
]


@pytest.mark.parametrize(("name", "options", "count", "lower", "its_options"), LOWER)
def test_with_too_few_values_it_is_the_next_lower(name, options, count, lower, its_options):
    steps = [2, 3, 7][:count]
    values = values_at(steps)
    predictor, other = PREDICTORS[name](**options), PREDICTORS[lower](**its_options)
    assert predictor.num_snapshots > count
    assert_near(forecast(predictor, values, steps, 9), forecast(other, values, steps, 9), 1.0, 1e-9)


@pytest.mark.parametrize("name", sorted(PREDICTORS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_never_nan(name, dtype):
    """Zeros, constants, what begins at once, and sizes that a square would overflow."""
    predictor = PREDICTORS[name]()
    count = predictor.num_snapshots
    largest = torch.finfo(dtype).max
    for value in (0.0, 1.0, 1e-6, 1e-3 * largest):
        steady = [torch.full(SHAPE, value, dtype=dtype) for _ in range(count)]
        begins = [torch.zeros(SHAPE, dtype=dtype) for _ in range(count - 1)] + steady[-1:]
        for kept in (steady, begins):
            for steps in (range(count), range(0, 3 * count, 3)):
                steps = list(steps)
                estimate = predictor.estimate(kept, steps, steps[-1] + 2)
                if estimate is None:
                    weights = predictor.weights(steps, steps[-1] + 2)
                    estimate = ops.forecast(None, kept, weights)
                assert estimate.dtype == dtype
                assert estimate.isfinite().all(), (value, steps)


def test_a_broken_old_value_costs_dmd_its_own_sample_alone():
    steps = [0, 1, 2, 3, 4]
    values = list(exponentials([*steps, 5], 2).float())
    values[0][1, 0, 0] = float("nan")
    estimate = PREDICTORS["dmd"]().estimate(values[:-1], steps, 5)
    assert_near(estimate[0], values[-1][0], 1.0, 1e-3)
    assert torch.equal(estimate[1], values[-2][1])


@pytest.mark.parametrize("name", sorted(PREDICTORS))
def test_no_forecast_looks_at_a_number_on_the_host(name):
    """A tensor without data raises where one of its numbers is asked for."""
    for options in ({}, {"dmd_svd_precision": "low"}, {"dmd_rank": 2}):
        predictor = PREDICTORS[name](**(options if name == "dmd" else {}))
        kept = [torch.empty(SHAPE, device="meta") for _ in range(predictor.num_snapshots)]
        steps = list(range(0, 3 * len(kept), 3))
        estimate = predictor.estimate(kept, steps, steps[-1] + 2)
        if estimate is None:
            estimate = ops.forecast(None, kept, predictor.weights(steps, steps[-1] + 2))
        assert (estimate.device.type, estimate.shape) == ("meta", SHAPE)
        with pytest.raises(RuntimeError, match="meta"):
            estimate.sum().item()
