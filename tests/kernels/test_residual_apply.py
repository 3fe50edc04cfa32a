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


@st.composite
def streams(draw):
    """One to three streams, each with its residual, of shapes and dtypes of their own."""
    each = draw(st.lists(shapes(), min_size=1, max_size=3))
    return [[draw(tensors(shape)) for _ in range(2)] for shape in each]


@in_each_form
@given(case=streams())
@settings(max_examples=NUM_EXAMPLES)
def test_any_tensors(run, case):
    hidden_in, residual = ([x.to(run.device) for x in side] for side in zip(*case, strict=True))
    got = run("residual_apply", hidden_in, residual)
    for out, (x, r) in zip(got, case, strict=True):
        assert out.dtype == x.dtype
        assert_within(out, x.double() + r.double(), (x.double().abs() + r.double().abs()) * EPS32)


@in_each_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_streams(run, dtype):
    image, text = ([fresh(1, n, 3072, dtype=dtype, seed=n + s) for s in (0, 1)] for n in (12, 4))
    hidden_in, residual = (
        [x.to(run.device) for x in side] for side in zip(image, text, strict=True)
    )
    got = run("residual_apply", hidden_in, residual)
    for out, (x, r) in zip(got, (image, text), strict=True):
        assert_within(out, x.double() + r.double(), torch.tensor(EPS32))


@in_each_form
def test_the_result_lies_in_memory_as_the_stream_does(run):
    turned = fresh(2, 4, 3, device=run.device).transpose(1, 2)
    assert run("residual_apply", [turned], [fresh(2, 3, 4, device=run.device)])[0].stride() == (
        turned.stride()
    )
    padded = fresh(2, 5, 4, device=run.device)[:, :3]
    assert run("residual_apply", [padded], [fresh(2, 3, 4, device=run.device)])[0].is_contiguous()


@in_each_form
def test_five_streams_keep_their_order(run):
    hidden_in = [torch.full((n, 2), float(n), device=run.device) for n in (3, 0, 1, 4, 2)]
    residual = [torch.full_like(x, 0.5) for x in hidden_in]
    got = run("residual_apply", hidden_in, residual)
    assert [x.unique().tolist() for x in got] == [[3.5], [], [1.5], [4.5], [2.5]]


@in_each_form
def test_rows_further_apart_than_int32_counts(run):
    # Memory that is never touched is never there.
    row, stride = 64, 2**30 + 64
    wide = torch.empty(2 * stride + row, dtype=torch.float16, device=run.device)
    view = wide.as_strided((1, 3, row), (stride, stride, 1))
    view.copy_(fresh(1, 3, row))
    residual = fresh(1, 3, row, dtype=torch.float16, device=run.device, seed=1)
    (got,) = run("residual_apply", [view], [residual])
    assert torch.equal(got, run("residual_apply", [view.clone()], [residual])[0])


@in_main_process
def test_no_streams():
    assert OPS.residual_apply([], []) == []


@in_main_process
def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="got 2 streams and 1 residuals"):
        OPS.residual_apply([fresh(2), fresh(2)], [fresh(2)])
    with pytest.raises(ValueError, match=r"residual has shape \(3,\), and hidden_in has \(2,\)"):
        OPS.residual_apply([fresh(2)], [fresh(3)])


@in_main_process
def test_opcheck():
    for dtype in DTYPES:
        image = [fresh(2, 5, 8, dtype=dtype, seed=s) for s in (1, 2)]
        text = [fresh(2, 3, 8, dtype=dtype, seed=s).transpose(1, 2) for s in (1, 2)]
        both = ([image[0], text[0]], [image[1], text[1]])
        torch.library.opcheck(OPS.residual_apply.default, both)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    x = fresh(2, 300, 384, dtype=dtype, device="cuda")
    torch.library.opcheck(OPS.residual_apply.default, ([x, x[0]], [x + 1, x[1]]))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
