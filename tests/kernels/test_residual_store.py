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
    layouts,
    run_interpreted,
    shapes,
    tensors,
)


@st.composite
def cases(draw):
    """hidden, hidden_in, and a state of any dtype and any layout but an expanded one."""
    shape = draw(shapes())
    streams = [draw(tensors(shape)) for _ in range(2)]
    state = torch.full(shape, float("nan"), dtype=draw(st.sampled_from(DTYPES)))
    laid_out = draw(layouts(shape))(state)
    return streams, laid_out if 0 not in laid_out.stride() else state


@in_each_form
@given(case=cases())
@settings(max_examples=2 * NUM_EXAMPLES)
def test_any_tensors(run, case):
    (hidden, hidden_in), state = case
    out = torch.empty_strided(state.shape, state.stride(), dtype=state.dtype, device=run.device)
    run("residual_store", hidden.to(run.device), hidden_in.to(run.device), out)
    wanted = hidden.double() - hidden_in.double()
    assert_within(out, wanted, (hidden.double().abs() + hidden_in.double().abs()) * EPS32)


@in_each_form
def test_nothing_is_written_beside_the_state(run):
    wide = fresh(2, 6, 9, device=run.device)
    before, out = wide.clone(), wide[:, 1:4, 2:7]
    hidden, hidden_in = (fresh(2, 3, 5, device=run.device, seed=s) for s in (1, 2))
    run("residual_store", hidden, hidden_in, out)
    assert torch.equal(out, hidden - hidden_in)
    before[:, 1:4, 2:7] = out
    assert torch.equal(wide, before)


@in_each_form
def test_a_float32_state_is_not_rounded_to_the_dtype_of_the_stream(run):
    hidden, hidden_in = (
        fresh(4, 8, dtype=torch.bfloat16, device=run.device, seed=s) for s in (1, 2)
    )
    out = torch.empty(4, 8, device=run.device)
    run("residual_store", hidden, hidden_in, out)
    assert torch.equal(out, hidden.float() - hidden_in.float())
    assert not torch.equal(out, (hidden - hidden_in).float())


@in_each_form
def test_every_kth_channel(run):
    hidden, hidden_in = (fresh(2, 3, 10, device=run.device, seed=s) for s in (1, 2))
    out = torch.empty(2, 3, 4, device=run.device)
    run("residual_store", hidden, hidden_in, out, 3)
    assert torch.equal(out, (hidden - hidden_in)[..., ::3])


@in_each_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_rows(run, dtype):
    hidden, hidden_in = (fresh(1, 12, 3072, dtype=dtype, seed=s) for s in (1, 2))
    out = torch.empty(1, 12, 3072, dtype=dtype, device=run.device)
    run("residual_store", hidden.to(run.device), hidden_in.to(run.device), out)
    assert_within(out, hidden.double() - hidden_in.double(), torch.tensor(EPS32))


@in_each_form
def test_more_dimensions_than_a_kernel_walks(run):
    # No two dimensions of these can be merged.
    hidden = fresh(3, 4, 5, 6, 7, device=run.device)[:2, :3, :4, :5, :6]
    hidden_in = fresh(6, 5, 4, 3, 2, device=run.device, seed=1).permute(4, 3, 2, 1, 0)
    out = torch.zeros(3, 3, 5, 5, 7, device=run.device)[:2, :, :4, :, :6]
    run("residual_store", hidden, hidden_in, out)
    assert torch.equal(out, hidden - hidden_in)


@pytest.mark.gpu
def test_more_elements_than_int32_counts():
    num_tokens, num_channels = 2**20 + 1, 2048
    needed = 3 * 2 * num_tokens * num_channels
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of device memory")
    x = torch.ones(1, num_tokens, num_channels, dtype=torch.bfloat16, device="cuda")
    out = torch.zeros_like(x)
    OPS.residual_store(x, torch.full_like(x, -2), out)
    assert out.amin() == 3 and out.amax() == 3


@in_main_process
def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"residual_store: out has shape \(2, 4\)"):
        OPS.residual_store(fresh(2, 5), fresh(2, 5), fresh(2, 4))


@in_main_process
def test_opcheck():
    for dtype in DTYPES:
        streams = [fresh(2, 5, 8, seed=s) for s in (1, 2)]
        out = torch.zeros(2, 5, 8, dtype=dtype)
        torch.library.opcheck(OPS.residual_store.default, (*streams, out))
    turned = torch.zeros(8, 5, 2).transpose(0, 2)
    torch.library.opcheck(OPS.residual_store.default, (*streams, turned))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    given = [fresh(2, 300, 384, dtype=dtype, device="cuda", seed=s) for s in range(3)]
    torch.library.opcheck(OPS.residual_store.default, tuple(given))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
