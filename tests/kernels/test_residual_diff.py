import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cachegraph_kernels import residual_diff
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

FLUX_CHANNELS = 3072


def as_tokens(x, batch_dim):
    """[B, T, C], in float64."""
    x = x.double().unsqueeze(0) if batch_dim is None else x.double().movedim(batch_dim, 0)
    x = x.unsqueeze(-1) if x.dim() == 1 else x
    num_tokens = x.shape[1:-1].numel()
    return x.reshape(x.shape[0], num_tokens, x.shape[-1])


def exact(hidden, hidden_in, previous, batch_dim=0, mask=None, threshold=0.0):
    """(sums, what float32 may get wrong), by the definition."""
    h, i, p = (as_tokens(x, batch_dim) for x in (hidden, hidden_in, previous))
    counts = torch.ones(h.shape[:2], dtype=torch.bool) if mask is None else mask
    moved, size = (h - i - p).abs().sum(-1), p.abs().sum(-1)
    magnitude = (h.abs() + i.abs() + p.abs()).sum(-1)
    sums = []
    for sample in range(h.shape[0]):
        tokens = [t for t in range(h.shape[1]) if counts[sample, t]]
        important = [
            t for t in tokens if is_important(moved[sample, t], size[sample, t], threshold)
        ]
        tokens = important or tokens
        sums.append([x[sample, tokens].sum() for x in (moved, size, magnitude, size)])
    table = torch.tensor(sums, dtype=torch.float64).reshape(-1, 4)
    return table[:, :2], table[:, 2:] * 8 * EPS32


def is_important(moved, size, threshold):
    if threshold == 0 or not (moved.isfinite() and size.isfinite()):
        return True
    return moved > threshold * size


@st.composite
def streams(draw):
    """Three tensors of one shape, and the dimension of their samples."""
    shape = draw(shapes())
    given = [draw(tensors(shape)) for _ in range(3)]
    return given, draw(st.sampled_from([None, *range(len(shape))]))


@in_each_form
@given(case=streams())
@settings(max_examples=2 * NUM_EXAMPLES)
def test_any_tensors(run, case):
    given, batch_dim = case
    got = run("residual_diff", *(x.to(run.device) for x in given), batch_dim, None, 1, 0.0)
    assert got.dtype == torch.float32
    assert_within(got, *exact(*given, batch_dim))


@st.composite
def masked_streams(draw):
    """Three tensors with samples first, a mask or none, and a threshold of importance."""
    shape = draw(shapes(min_dims=2))
    given = [draw(tensors(shape)) for _ in range(3)]
    mask = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=9, max_size=9)))
    if mask is not None:
        num_tokens = shape[1:-1].count(0) == 0 and shape[0] * torch.Size(shape[1:-1]).numel()
        mask = torch.tensor((mask * (num_tokens // 9 + 1))[:num_tokens], dtype=torch.bool)
        mask = mask.reshape(shape[:-1])
    return given, mask, draw(st.sampled_from((0.0, 0.9, 1.7)))


@in_each_form
@given(case=masked_streams())
@settings(max_examples=NUM_EXAMPLES)
def test_masked_and_important_tokens(run, case):
    given, mask, threshold = case
    on_device = [x.to(run.device) for x in (*given, *([] if mask is None else [mask]))]
    on_device += [None] * (mask is None)
    got = run("residual_diff", *on_device[:3], 0, on_device[3], 1, threshold)
    tokens = None if mask is None else mask.reshape(mask.shape[0], mask.shape[1:].numel())
    assert_within(got, *exact(*given, 0, tokens, threshold))


@in_each_form
def test_what_a_masked_token_holds_is_not_read(run):
    h, i, p = (fresh(2, 5, 8, seed=s, device=run.device) for s in range(3))
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool, device=run.device)
    wanted = run("residual_diff", h, i, p, 0, mask, 1, 0.0)
    for x in (h, i, p):
        x[~mask] = float("nan")
    assert torch.equal(run("residual_diff", h, i, p, 0, mask, 1, 0.0), wanted)
    assert run("residual_diff", h, i, p, 0, None, 1, 0.0).isnan().all()


@in_each_form
def test_a_mask_may_be_broadcast(run):
    h, i, p = (fresh(2, 5, 8, seed=s, device=run.device) for s in range(3))
    mask = torch.tensor([1, 0, 0, 1, 1], dtype=torch.bool, device=run.device)
    got = run("residual_diff", h, i, p, 0, mask, 1, 0.0)
    assert torch.equal(got, run("residual_diff", h, i, p, 0, mask.expand(2, 5), 1, 0.0))
    kept = [x[:, mask] for x in (h, i, p)]
    torch.testing.assert_close(got, run("residual_diff", *kept, 0, None, 1, 0.0))


@in_each_form
def test_every_kth_channel(run):
    h, i = (fresh(2, 5, 10, seed=s, device=run.device) for s in range(2))
    p = fresh(2, 5, 4, seed=2, device=run.device)
    got = run("residual_diff", h, i, p, 0, None, 3, 0.0)
    thin = [x[..., ::3].contiguous() for x in (h, i)]
    torch.testing.assert_close(got, run("residual_diff", *thin, p, 0, None, 1, 0.0))


@in_each_form
def test_with_no_important_token_all_count(run):
    h, i, p = (fresh(2, 5, 8, seed=s, device=run.device) for s in range(3))
    h[0], i[0] = p[0], 0.0
    got = run("residual_diff", h, i, p, 0, None, 1, 0.5)
    plain = run("residual_diff", h, i, p, 0, None, 1, 0.0)
    torch.testing.assert_close(got[0], plain[0])
    assert got[0, 0] == 0 and got[0, 1] > 0
    assert got[1, 1] < plain[1, 1] or got[1, 0] == plain[1, 0]


@in_each_form
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_one_bad_number_is_never_a_hit(run, value, which, threshold):
    given = [fresh(2, 3, 8, seed=s, device=run.device) for s in range(3)]
    given[which][1, 2, 3] = value
    moved, size = run("residual_diff", *given, 0, None, 1, threshold).unbind(1)
    assert (moved[0] / size[0]).isfinite()
    assert not moved[1].isfinite()
    assert not moved[1] / size[1] < 1e30


@in_each_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_rows(run, dtype):
    num_tokens = 8 if run.name == "kernel" else 640
    h, i, p = (fresh(2, num_tokens, FLUX_CHANNELS, dtype=dtype, seed=s) for s in range(3))
    wanted = torch.stack(
        [(h.double() - i.double() - p.double()).abs().sum((1, 2)), p.double().abs().sum((1, 2))], 1
    )
    got = run("residual_diff", *(x.to(run.device) for x in (h, i, p)), 0, None, 1, 0.0)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=2e-6, atol=0)


@in_each_form
def test_image_part_of_a_joint_sequence(run):
    num_text, num_image = 3, 6
    joint = [fresh(2, num_text + num_image, 130, seed=s, device=run.device) for s in range(3)]
    image = [x[:, num_text:] for x in joint]
    got = run("residual_diff", *image, 0, None, 1, 0.0)
    wanted = run("residual_diff", *(x.contiguous() for x in image), 0, None, 1, 0.0)
    torch.testing.assert_close(got, wanted)


@in_each_form
@given(shape=shapes(min_dims=2), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
@settings(max_examples=NUM_EXAMPLES // 3)
def test_a_sample_in_a_batch_equals_itself_alone(run, shape, dtype, seed):
    given = [fresh(*shape, dtype=dtype, seed=seed + s, device=run.device) for s in range(3)]
    together = run("residual_diff", *given, 0, None, 1, 0.0)
    for sample in range(shape[0]):
        alone = run("residual_diff", *(x[sample, None] for x in given), 0, None, 1, 0.0)
        assert torch.equal(together[sample], alone[0])


@in_main_process
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_sample_equals_itself_alone_also_with_many_tokens(num_threads):
    # From 32768 numbers on, PyTorch shares out a sum among threads if there is one result alone.
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        given = [fresh(3, 40000, 4, seed=s) for s in range(3)]
        together = OPS.residual_diff(*given)
        alone = [OPS.residual_diff(*(x[s, None] for x in given)) for s in range(3)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat(alone))


@in_each_form
def test_same_bits_in_every_run(run):
    num_runs = 5 if run.name == "kernel" else 100
    num_tokens = 4608 if run.name == "cuda" else 60
    given = [fresh(2, num_tokens, 384, seed=s, device=run.device) for s in range(3)]
    first = run("residual_diff", *given, 0, None, 1, 0.0)
    for _ in range(num_runs - 1):
        assert torch.equal(run("residual_diff", *given, 0, None, 1, 0.0), first)


@in_each_form
def test_rows_further_apart_than_int32_counts(run):
    # Memory that is never touched is never there.
    row, stride = 64, 2**30 + 64
    wide = torch.empty(2 * stride + row, dtype=torch.float16, device=run.device)
    view = wide.as_strided((1, 3, row), (stride, stride, 1))
    view.copy_(fresh(1, 3, row))
    other = fresh(1, 3, row, dtype=torch.float16, device=run.device, seed=1)
    got = run("residual_diff", view, other, view, 0, None, 1, 0.0)
    assert torch.equal(
        got, run("residual_diff", view.clone(), other, view.clone(), 0, None, 1, 0.0)
    )


@pytest.mark.gpu
def test_more_elements_than_int32_counts():
    num_tokens, num_channels = 2**20 + 1, 2048
    needed = 3 * 2 * num_tokens * num_channels
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of device memory")
    h, i, p = (torch.ones(1, num_tokens, num_channels, device="cuda").bfloat16() for _ in range(3))
    h[:, -1] = 5
    moved, size = OPS.residual_diff(h, i, p)[0].tolist()
    assert size == pytest.approx(num_tokens * num_channels, rel=1e-6)
    assert moved == pytest.approx(num_tokens * num_channels + 2 * num_channels, rel=1e-6)


@in_main_process
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_in": fresh(2, 3, 5)}, r"hidden_in has shape \(2, 3, 5\)"),
        ({"previous": fresh(2, 3)}, r"previous has shape \(2, 3\)"),
        ({"previous": fresh(2, 3, 4).to("meta")}, "previous is on meta, and hidden is on cpu"),
        ({"token_mask": fresh(2, 3)}, "token_mask must be bool, got torch.float32"),
        ({"downsample_factor": 2}, "must be equal"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    given = {name: fresh(2, 3, 4) for name in ("hidden", "hidden_in", "previous")}
    with pytest.raises(ValueError, match=message):
        OPS.residual_diff(**{**given, **change})


@in_main_process
def test_opcheck():
    h, i, p = (fresh(2, 5, 8, seed=s) for s in range(3))
    mask = torch.ones(2, 5, dtype=torch.bool)
    for arguments in ((), (None,), (1,), (0, mask, 1, 0.5)):
        torch.library.opcheck(OPS.residual_diff.default, (h, i, p, *arguments))
    turned = [x.bfloat16().transpose(1, 2) for x in (h, i, p)]
    torch.library.opcheck(OPS.residual_diff.default, (*turned, 0))
    torch.library.opcheck(OPS.residual_diff.default, (h, i, p[..., ::2], 0, None, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    given = [fresh(2, 300, 384, dtype=dtype, device="cuda", seed=s) for s in range(3)]
    torch.library.opcheck(OPS.residual_diff.default, tuple(given))


@in_main_process
def test_the_function_is_the_op_without_the_dispatcher():
    given = [fresh(2, 5, 8, seed=s) for s in range(3)]
    assert torch.equal(residual_diff(*given), OPS.residual_diff(*given))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
