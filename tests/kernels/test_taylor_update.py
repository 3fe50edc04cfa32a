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


def exact(value, factors, gaps):
    """(new factors, what float32 may get wrong), by the definition."""
    new, magnitude = [value.double()], [value.double().abs()]
    for old, gap in zip(factors[:-1], gaps, strict=True):
        old = old.double()
        new.append((new[-1] - old) / gap)
        magnitude.append((magnitude[-1] + old.abs()) / abs(gap))
    return new, [m * 8 * EPS32 for m in magnitude]


@st.composite
def cases(draw):
    """A value, old factors of any layout, and one gap or one for each order."""
    shape = draw(shapes(max_dims=4))
    order = draw(st.integers(0, 4))
    value = draw(tensors(shape))
    factors = [draw(tensors(shape)) for _ in range(order + 1)]
    gap = st.sampled_from((1.0, 2.0, 3.0, 7.0, -1.5))
    gaps = draw(st.one_of(st.none(), st.lists(gap, min_size=order, max_size=order)))
    return value, factors, draw(gap), gaps


def copy_on(x, device):
    """A copy that lies in memory as `x` does; where `x` is expanded, a contiguous one."""
    if 0 in x.stride():
        return x.to(device, copy=True).contiguous()
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return copy.copy_(x)


@in_each_form
@given(case=cases())
@settings(max_examples=2 * NUM_EXAMPLES)
def test_any_tensors(run, case):
    value, factors, gap, gaps = case
    wanted, errors = exact(value, factors, [gap] * (len(factors) - 1) if gaps is None else gaps)
    out = [copy_on(x, run.device) for x in factors]
    run("taylor_update", value.to(run.device), out, gap, gaps)
    for x, new, error in zip(out, wanted, errors, strict=True):
        assert_within(x, new, error)


@in_each_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_rows(run, dtype):
    value, *factors = (fresh(1, 6, 3072, dtype=dtype, seed=s) for s in range(4))
    wanted, errors = exact(value, factors, [3.0] * 2)
    out = [x.to(run.device, copy=True) for x in factors]
    run("taylor_update", value.to(run.device), out, 3.0, None)
    for x, new, error in zip(out, wanted, errors, strict=True):
        assert_within(x, new, error)


@in_each_form
@pytest.mark.parametrize("order", range(5))
def test_divided_differences_forecast_a_polynomial_over_uneven_gaps(run, order):
    generator = torch.Generator().manual_seed(order)
    weights = torch.randn(order + 1, 6, generator=generator)

    def effect_at(step):
        return sum(w * (step / 10) ** i for i, w in enumerate(weights))

    steps = [0.0, 1.0, 3.0, 4.0, 8.0][: order + 1]
    factors = [torch.zeros(6, device=run.device) for _ in range(order + 1)]
    for i, step in enumerate(steps):
        gaps = [step - before for before in reversed(steps[:i])]
        run("taylor_update", effect_at(step).to(run.device), factors[: i + 1], 1.0, gaps)
    # Newton's form: the i-th factor goes with (k)(k + gap_1)...(k + gap_{i-1}).
    k, coefficients = 2.0, [1.0]
    for before in reversed(steps):
        coefficients.append(coefficients[-1] * (steps[-1] + k - before))
    zero = torch.zeros(6, device=run.device)
    got = run("taylor_apply", zero, factors, k, coefficients[: order + 1])
    torch.testing.assert_close(got.cpu(), effect_at(steps[-1] + k), rtol=1e-5, atol=1e-5)


@in_each_form
def test_factors_may_be_slices_of_one_tensor(run):
    stack, value = fresh(4, 2, 5, device=run.device), fresh(2, 5, device=run.device, seed=1)
    before = stack.clone()
    run("taylor_update", value, [stack[1], stack[2]], 2.0, None)
    assert torch.equal(stack[[0, 3]], before[[0, 3]])
    assert torch.equal(stack[1], value)
    torch.testing.assert_close(stack[2], (value - before[1]) / 2)


@in_each_form
def test_a_row_further_away_than_int32_counts(run):
    # Memory that is never touched is never there.
    row, stride = 64, 2**30 + 64
    wide = torch.empty(2 * stride + row, dtype=torch.float16, device=run.device)
    far = wide.as_strided((3, row), (stride, 1))
    far.copy_(fresh(3, row))
    near, value = far.clone(), fresh(3, row, device=run.device, seed=1)
    other = [torch.zeros(3, row, device=run.device) for _ in range(2)]
    run("taylor_update", value, [far, other[0]], 2.0, None)
    run("taylor_update", value, [near, other[1]], 2.0, None)
    assert torch.equal(far, near) and torch.equal(*other)


@in_main_process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((fresh(2, 3), [fresh(2, 3)] * 6, 1.0), "there must be 1 to 5 factors, got 6"),
        ((fresh(2, 3), [], 1.0), "got 0"),
        ((fresh(2, 3), [fresh(2, 3), fresh(2, 4)], 1.0), r"factors\[1\] has shape \(2, 4\)"),
        ((fresh(2, 3), [fresh(2, 3)] * 2, 0.0), r"order 1 takes 1 gaps, none 0; got \[0.0\]"),
        ((fresh(2, 3), [fresh(2, 3)] * 3, 1.0, [1.0]), "order 2 takes 2 gaps"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        OPS.taylor_update(*arguments)


@in_main_process
def test_opcheck():
    for order in (0, 2):
        factors = [fresh(2, 5, 8, dtype=torch.bfloat16, seed=s) for s in range(order + 1)]
        torch.library.opcheck(OPS.taylor_update.default, (fresh(2, 5, 8), factors, 2.0))
    turned = [fresh(2, 8, 5, seed=s).transpose(1, 2) for s in range(3)]
    torch.library.opcheck(OPS.taylor_update.default, (fresh(2, 5, 8), turned, 2.0, [2.0, 5.0]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    value, *factors = (fresh(2, 300, 384, dtype=dtype, device="cuda", seed=s) for s in range(4))
    torch.library.opcheck(OPS.taylor_update.default, (value, factors, 2.0))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
