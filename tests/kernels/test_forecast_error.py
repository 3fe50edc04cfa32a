import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.kernel_cases import (
    DTYPES,
    EPS32,
    NUM_EXAMPLES,
    OPS,
    assert_within,
    fresh,
    in_each_form,
    in_main_process,
    run_interpreted,
    shapes,
    tensors,
)


def exact(hidden, hidden_in, factors, coefficients, batch_dim):
    """(sums, what may be wrong of them), by the definition: the forecast is rounded once, and what
    lies near the middle of two numbers may go to either."""
    forecast = torch.zeros_like(hidden).double() if hidden_in is None else hidden_in.double()
    magnitude = forecast.abs()
    for c, factor in zip(coefficients, factors, strict=True):
        forecast, magnitude = forecast + c * factor.double(), magnitude + abs(c) * factor.abs()
    eps = max(torch.finfo(hidden.dtype).eps, 8 * EPS32)
    per_sample = [
        sum_each(x, batch_dim)
        for x in (
            (forecast.to(hidden.dtype).double() - hidden.double()).abs(),
            hidden.double().abs(),
            (magnitude.double() + forecast.abs()) * eps,
        )
    ]
    moved, size, error = per_sample
    rounded = (moved + size) * 8 * EPS32
    return torch.stack([moved, size], 1), torch.stack([error + rounded, rounded], 1)


def sum_each(x, batch_dim):
    x = x.unsqueeze(0) if batch_dim is None else x.movedim(batch_dim, 0)
    return x.reshape(x.shape[0], x[0].numel() if len(x) else 0).sum(1)


@st.composite
def cases(draw):
    """A stream of any layout, its entry or none, factors, and the dimension of the samples."""
    shape = draw(shapes(max_dims=4))
    dtype = draw(st.sampled_from(DTYPES))
    order = draw(st.integers(0, 4))
    numbers = st.floats(-4, 4, width=16)
    coefficients = draw(st.lists(numbers, min_size=order + 1, max_size=order + 1))
    hidden, *others = (draw(tensors(shape, dtype, has_specials=False)) for _ in range(order + 3))
    hidden_in, *factors = others
    batch_dim = draw(st.sampled_from((None, *range(len(shape)))))
    return hidden, draw(st.sampled_from((hidden_in, None))), factors, coefficients, batch_dim


def on(device, hidden, hidden_in, factors):
    moved = None if hidden_in is None else hidden_in.to(device)
    return hidden.to(device), moved, [factor.to(device) for factor in factors]


@in_each_form
@given(case=cases())
@settings(max_examples=NUM_EXAMPLES // 3)
def test_any_tensors(run, case):
    hidden, hidden_in, factors, coefficients, batch_dim = case
    given_there = on(run.device, hidden, hidden_in, factors)
    kept, sums = run("forecast_error", *given_there, coefficients, batch_dim)
    assert kept.dtype == hidden.dtype and kept.stride() == torch.empty_like(hidden).stride()
    zeros = torch.zeros_like(hidden)
    wanted = hidden.double() - (zeros if hidden_in is None else hidden_in).double()
    assert_within(kept, wanted, wanted.abs() * EPS32)
    assert_within(sums, *exact(hidden, hidden_in, factors, coefficients, batch_dim))


@in_each_form
@pytest.mark.parametrize(("dtype", "order"), zip(DTYPES, (0, 4, 1), strict=True))
def test_flux_rows(run, dtype, order):
    hidden, hidden_in, *factors = (fresh(2, 6, 3072, dtype=dtype, seed=s) for s in range(order + 3))
    coefficients = [0.5 * (i + 1) for i in range(order + 1)]
    given_there = on(run.device, hidden, hidden_in, factors)
    _, sums = run("forecast_error", *given_there, coefficients, 0)
    assert_within(sums, *exact(hidden, hidden_in, factors, coefficients, 0))


@in_each_form
def test_what_is_kept_is_a_difference_and_what_is_missed_is_that_of_the_forecast(run):
    """To the bit what the ops for each by itself give."""
    hidden, hidden_in, *factors = (
        fresh(2, 5, 8, dtype=torch.float16, device=run.device, seed=s) for s in range(4)
    )
    kept, sums = run("forecast_error", hidden, hidden_in, factors, [-1.0, 2.0], 0)
    assert torch.equal(kept, hidden - hidden_in)
    forecast = run("taylor_apply", hidden_in, factors, 0.0, [-1.0, 2.0])
    moved = (forecast.float() - hidden.float()).abs().sum((1, 2))
    torch.testing.assert_close(sums[:, 0], moved, rtol=1e-6, atol=0)


@in_each_form
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_show_in_their_sample(run, value):
    given_there = [fresh(2, 5, 8, device=run.device, seed=s) for s in range(3)]
    given_there[2][1, 2, 3] = value
    _, sums = run("forecast_error", *given_there[:2], given_there[2:], [1.0], 0)
    assert sums[0].isfinite().all() and not sums[1, 0].isfinite()


@in_main_process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((fresh(2, 3), None, [fresh(2, 3)] * 6, [1.0] * 6), "there must be 1 to 5 factors, got 6"),
        ((fresh(2, 3), fresh(2, 4), [fresh(2, 3)], [1.0]), r"hidden_in has shape \(2, 4\)"),
        ((fresh(2, 3), None, [fresh(2, 3)] * 2, [1.0]), "got 2 factors and 1 coefficients"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        OPS.forecast_error(*arguments)


@in_main_process
def test_opcheck():
    hidden, hidden_in, *factors = (fresh(2, 5, 8, seed=s) for s in range(5))
    for entry, batch_dim in ((hidden_in, 0), (None, None)):
        given_there = (hidden, entry, factors, [1.0, 2.0, -1.0], batch_dim)
        torch.library.opcheck(OPS.forecast_error.default, given_there)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    hidden, *others = (fresh(2, 300, 384, dtype=dtype, device="cuda", seed=s) for s in range(4))
    torch.library.opcheck(
        OPS.forecast_error.default, (hidden, others[0], others[1:], [1.0, 2.0], 0)
    )


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
