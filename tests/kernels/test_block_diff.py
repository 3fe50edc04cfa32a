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


def exact(inputs, cached, batch_dim):
    """(sums, what float32 may get wrong), by the definition."""
    sums, errors = [], []
    for pair in zip(inputs, cached, strict=True):
        x, c = (
            t.double().unsqueeze(0) if batch_dim is None else t.double().movedim(batch_dim, 0)
            for t in pair
        )
        x, c = (t.reshape(t.shape[0], t.shape[1:].numel()) for t in (x, c))
        size = c.abs().sum(1)
        sums.append(torch.stack([(x - c).abs().sum(1), size], 1))
        errors.append(torch.stack([x.abs().sum(1) + size, size], 1) * 8 * EPS32)
    return torch.stack(sums), torch.stack(errors)


@st.composite
def cases(draw):
    """Blocks of one shape and a dtype for each side, each tensor with a layout of its own."""
    shape = draw(shapes(max_dims=4))
    num_blocks = draw(st.integers(1, 4))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in range(2)]
    sides = [[draw(tensors(shape, dtype)) for _ in range(num_blocks)] for dtype in dtypes]
    return *sides, draw(st.sampled_from([None, *range(len(shape))]))


@in_each_form
@given(case=cases())
@settings(max_examples=NUM_EXAMPLES)
def test_any_tensors(run, case):
    inputs, cached, batch_dim = case
    on_device = [[x.to(run.device) for x in side] for side in (inputs, cached)]
    got = run("block_diff", *on_device, batch_dim)
    assert got.dtype == torch.float32
    assert_within(got, *exact(*case))


@in_each_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_flux_rows(run, dtype):
    inputs, cached = (
        [fresh(1, 6, 3072, dtype=dtype, seed=10 * side + i) for i in range(3)] for side in range(2)
    )
    got = run("block_diff", *([x.to(run.device) for x in s] for s in (inputs, cached)), 0)
    assert_within(got, *exact(inputs, cached, 0))


@in_each_form
def test_each_block_and_sample_equals_itself_alone(run):
    inputs, cached = (
        [fresh(2, 7, 32, seed=10 * side + i, device=run.device) for i in range(4)]
        for side in range(2)
    )
    together = run("block_diff", inputs, cached, 0)
    for i, pair in enumerate(zip(inputs, cached, strict=True)):
        for sample in range(2):
            alone = run("block_diff", *([x[sample, None]] for x in pair), 0)
            assert torch.equal(together[i, sample], alone[0, 0])


@in_each_form
def test_same_bits_in_every_run(run):
    num_runs = 5 if run.name == "kernel" else 100
    blocks = [fresh(2, 40, 384, seed=i, device=run.device) for i in range(4)]
    first = run("block_diff", blocks[:2], blocks[2:], 0)
    for _ in range(num_runs - 1):
        assert torch.equal(run("block_diff", blocks[:2], blocks[2:], 0), first)


@in_each_form
def test_one_bad_number_is_in_its_own_block_alone(run):
    inputs, cached = ([fresh(2, 3, 8, device=run.device) for _ in range(3)] for _ in range(2))
    inputs[1][0, 1, 2] = float("nan")
    sums = run("block_diff", inputs, cached, 0)
    assert sums.isnan().nonzero().tolist() == [[1, 0, 0]]


@pytest.mark.gpu
def test_many_blocks_on_a_gpu():
    inputs, cached = (
        [
            fresh(1, 512, 3072, dtype=torch.bfloat16, device="cuda", seed=100 * s + i)
            for i in range(57)
        ]
        for s in range(2)
    )
    got = OPS.block_diff(inputs, cached)
    cpu = [[x.cpu() for x in side] for side in (inputs, cached)]
    assert_within(got, *exact(*cpu, 0))


@in_main_process
@pytest.mark.parametrize(
    ("inputs", "cached", "message"),
    [
        ([], [], "got 0 inputs and 0 cached tensors"),
        ([fresh(2)], [], "got 1 inputs and 0 cached tensors"),
        ([fresh(2), fresh(2)], [fresh(2), fresh(3)], r"cached\[1\] has shape \(3,\)"),
        ([fresh(2), fresh(2).half()], [fresh(2)] * 2, "block 1 has other dtypes than block 0"),
    ],
)
def test_arguments_that_do_not_fit(inputs, cached, message):
    with pytest.raises(ValueError, match=message):
        OPS.block_diff(inputs, cached)


@in_main_process
def test_opcheck():
    inputs, cached = ([fresh(2, 5, 8, seed=10 * s + i) for i in range(3)] for s in range(2))
    torch.library.opcheck(OPS.block_diff.default, (inputs, cached))
    turned = [x.bfloat16().transpose(0, 1) for x in inputs]
    torch.library.opcheck(OPS.block_diff.default, (turned, turned[::-1], 1))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_on_a_gpu(dtype):
    blocks = [fresh(2, 300, 384, dtype=dtype, device="cuda", seed=i) for i in range(4)]
    torch.library.opcheck(OPS.block_diff.default, (blocks[:2], blocks[2:]))


@in_main_process
def test_interpreted():
    run_interpreted(__file__)
