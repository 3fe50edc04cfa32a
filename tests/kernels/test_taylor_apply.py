import math

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


def exact(hidden_in, factors, coefficients):
    """(forecast, what float32 may get wrong), by the definition."""
    terms = [c * d.double() for c, d in zip(coefficients, factors, strict=True)]
    out, magnitude = hidden_in.double(), hidden_in.double().abs()
    for term in terms:
        out, magnitude = out + term, magnitude + term.abs()
    return out, magnitude * 8 * EPS32


def of_taylor(order, k):
    return [k**i / math.factorial(i) for i in range(order + 1)]


@st.composite
def cases(draw):
    """An input, factors of any layout, and steps or coefficients."""
    shape = draw(shapes(max_dims=4))
    order = draw(st.integers(0, 4))
    k = draw(st.sampled_from((1.0, 2.0, 3.0, -1.0)))
    numbers = st.floats(-4, 4, width=16)
    coefficients = st.lists(numbers, min_size=order + 1, max_size=order + 1)
    factors = [draw(tensors(shape)) for _ in range(order + 1)]
    return draw(tensors(shape)), factors, k, draw(st.one_of(st.none(), coefficients))


@in_each_form
@given(case=cases())
@settings(max_examples=2 * NUM_EXAMPLES)
def test_any_tensors(run, case):
    hidden_in, factors, k, coefficients = case
    on_device = [x.to(run.device) for x in factors]
    got = run("taylor_apply", hidden_in.to(run.device), on_device, k, coefficients)
    assert got.dtype == hidden_in.dtype
    order = len(factors) - 1
    wanted = exact(hidden_in, factors, coefficients or of_taylor(order, k))
    assert_within(got, *wanted)


@in_each_form
@pytest.mark.parametrize(
    ("dtype", "order"), [*zip(DTYPES, (4, 3, 2), strict=True), (DTYPES[2], 0), (DTYPES[2], 1)]
)
def test_flux_rows(run, dtype, order):
    hidden_in, *factors = (fresh(1, 6, 3072, dtype=dtype, seed=s) for s in range(order + 2))
    on_device = [x.to(run.device) for x in factors]
    got = run("taylor_apply", hidden_in.to(run.device), on_device, 3.0, None)
    assert_within(got, *exact(hidden_in, factors, of_taylor(order, 3.0)))


@in_each_form
def test_order_0_is_the_replay(run):
    hidden_in, residual = (fresh(2, 5, 8, device=run.device, seed=s) for s in range(2))
    got = run("taylor_apply", hidden_in, [residual], 5.0, None)
    assert torch.equal(got, run("residual_apply", [hidden_in], [residual])[0])


@in_each_form
def test_the_result_lies_in_memory_as_the_stream_does(run):
    turned = fresh(2, 4, 3, device=run.device).transpose(1, 2)
    factors = [fresh(2, 3, 4, device=run.device, seed=s) for s in range(2)]
    assert run("taylor_apply", turned, factors, 1.0, None).stride() == turned.stride()


@in_main_process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((fresh(2, 3), [fresh(2, 3)] * 6, 1.0), "there must be 1 to 5 factors, got 6"),
        ((fresh(2, 3), [fresh(2, 4)], 1.0), r"factors\[0\] has shape \(2, 4\)"),
        ((fresh(2, 3), [fresh(2, 3)] * 2, 1.0, [1.0]), "got 2 factors and 1 coefficients"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        OPS.taylor_apply(*arguments)


@in_main_process
def test_opcheck():
    for order in (0, 2):
        factors = [fresh(2, 5, 8, seed=s) for s in range(order + 1)]
        torch.library.opcheck(OPS.taylor_apply.default, (factors[0].bfloat16(), factors, 2.0))
    turned = fresh(2, 8, 5).transpose(1, 2)
    torch.library.opcheck(OPS.taylor_apply.default, (turned, factors, 2.0, [2.0, 5.0, 1.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    hidden_in, *factors = (fresh(2, 300, 384, dtype=dtype, device="cuda", seed=s) for s in range(4))
    torch.library.opcheck(OPS.taylor_apply.default, (hidden_in, factors, 2.0))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
