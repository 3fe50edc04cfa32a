"""When kernels are used, in which tiles, and what is said where they can't be."""

import os
import subprocess
import sys

import pytest
import torch
from torch._library.triton import get_triton_kernels_for_op

from dit_cachegraph_kernels import (
    KernelError,
    build_kernels,
    residual_apply,
    residual_diff,
    residual_store,
)
from dit_cachegraph_kernels._launch import block_sizes, chunks_of, launching, tiles_of
from dit_cachegraph_kernels._layout import layout_of
from dit_cachegraph_kernels.build import calls_of
from dit_cachegraph_kernels.residual_store import launch_residual_store
from support.kernel_cases import OPS, ROOT, fresh, in_main_process, needs_triton

pytestmark = in_main_process

CPU = torch.device("cpu")
HIDE_TRITON = "import sys; sys.modules['triton'] = None\n"
# Tensors of a GPU that hold nothing, which need no GPU.
ON_A_GPU = """
import torch
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses import FakeTensorMode
from dit_cachegraph_kernels import residual_diff
with FakeTensorMode():
    x, y, z = (torch.empty(2, 3, 4, device="cuda") for _ in range(3))
    for _ in range(3):
        sums = residual_diff(x, y, z)
assert sums.shape == (2, 2) and sums.device.type == "cuda"
"""


def run_python(code, **environment):
    """(exit status, standard error) of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    return done.returncode, done.stderr


def test_without_triton_a_gpu_gets_the_plain_form_and_one_warning():
    status, errors = run_python(HIDE_TRITON + ON_A_GPU)
    assert status == 0, errors
    assert errors.count("PlainKernelsWarning") == 1
    assert "install triton, or set DIT_CACHEGRAPH_KERNELS=plain" in errors


def test_without_triton_a_cpu_misses_nothing_and_hears_nothing():
    code = (
        "import torch, dit_cachegraph_kernels as k; x = torch.ones(2, 3); k.residual_diff(x, x, x)"
    )
    assert run_python(HIDE_TRITON + code) == (0, "")


def test_the_plain_form_may_be_asked_for():
    assert run_python(HIDE_TRITON + ON_A_GPU, DIT_CACHEGRAPH_KERNELS="plain") == (0, "")
    if torch.cuda.is_available():
        assert run_python(ON_A_GPU, DIT_CACHEGRAPH_KERNELS="plain") == (0, "")


def test_a_wrong_switch_is_an_error():
    status, errors = run_python("import dit_cachegraph_kernels", DIT_CACHEGRAPH_KERNELS="cuda")
    assert status == 1
    assert "DIT_CACHEGRAPH_KERNELS must be 'triton' or 'plain', got 'cuda'" in errors


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="here kernels can be launched")
def test_a_kernel_that_cannot_be_launched_is_an_error_with_a_remedy():
    given = [fresh(2, 3, seed=s) for s in range(3)]
    remedy = "DIT_CACHEGRAPH_KERNELS=plain before Python starts"
    with pytest.raises(KernelError, match=f"residual_store did not compile or launch.*{remedy}"):
        launch_residual_store(*given)
    assert torch.equal(given[2], fresh(2, 3, seed=2))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=str,
)
def test_what_the_device_says_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught, launching("residual_diff", fresh(2)):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PassManager::run failed"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        OSError("no ptxas"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_kernel_is_told_with_a_remedy(error):
    said = "residual_diff did not.*=plain"
    with pytest.raises(KernelError, match=said) as caught, launching("residual_diff", fresh(2)):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("batch_dim", [None, 0, 1])
def test_what_is_called_to_build_kernels_is_what_the_ops_take(batch_dim):
    called = set()
    for op, arguments in calls_of(torch.bfloat16, CPU, 64, batch_dim):
        getattr(OPS, op)(*arguments)
        called.add(op)
    assert called == {"residual_diff", "taylor_apply", "forecast_error", "block_diff"}


@pytest.mark.gpu
def test_kernels_are_built_on_a_gpu():
    build_kernels(torch.bfloat16, torch.device("cuda"), 3072, 0)


@needs_triton
def test_what_is_cached_is_told_apart_by_the_kernels_of_an_op():
    kernels = {
        "residual_diff": {"_residual_diff_kernel", "_sum_partials_kernel"},
        "residual_store": {"_residual_store_kernel"},
        "residual_apply": {"_residual_apply_kernel"},
        "taylor_update": {"_taylor_update_kernel"},
        "taylor_apply": {"_taylor_apply_kernel"},
        "forecast_error": {"_forecast_error_kernel", "_sum_partials_kernel"},
    }
    for op, wanted in kernels.items():
        found = get_triton_kernels_for_op(f"dit_cachegraph::{op}")
        assert {kernel.__name__ for kernel in found} == wanted


@pytest.mark.parametrize("num_cols", [1, 5, 64, 130, 384, 1536, 2432, 3072, 5120, 2**20])
@pytest.mark.parametrize("tile", [2048, 4096])
def test_blocks_are_powers_of_two_that_make_up_a_tile(num_cols, tile):
    block_rows, block_cols = block_sizes(num_cols, is_flat=False, tile=tile)
    assert block_rows * block_cols == tile
    assert block_cols & (block_cols - 1) == 0
    # Less than half of the last block of a row is wasted, or the row is short.
    assert num_cols % block_cols == 0 or block_cols < 2 * num_cols


@pytest.mark.parametrize("shape", [(1,), (7, 5), (3, 100, 384), (2, 3, 4, 5)])
def test_tiles_and_chunks_cover_a_layout_once(shape):
    x = torch.empty(shape)
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    layout = layout_of((x, turned))
    assert layout.num_rows * layout.num_cols == x.numel()
    tiles = tiles_of(layout)
    covered = tiles.num_tiles * tiles.block_rows * tiles.block_cols
    assert x.numel() <= covered
    chunks = chunks_of(layout)
    per_chunk = chunks.block_rows * chunks.block_cols * chunks.num_tiles
    assert x.numel() <= chunks.num_chunks * per_chunk


def offsets_of(layout, tensor):
    """Where the elements of a layout lie, row by row, as the kernels work it out."""
    outer, inner, col = layout.strides[tensor]
    rows = torch.arange(layout.num_rows).unsqueeze(1)
    cols = torch.arange(layout.num_cols)
    return rows // layout.num_inner * outer + rows % layout.num_inner * inner + cols * col


@pytest.mark.parametrize(
    ("strides", "num_dims"),
    [
        (((384 * 50, 384, 1),) * 3, 1),
        (((384 * 80, 384, 1),) * 3, 2),
        (((384 * 80, 3 * 384, 1),) * 3, 3),
        (((384 * 50, 1, 50),) * 3, 1),
        (((384 * 50, 384, 1), (384 * 50, 1, 50), (384 * 50, 384, 1)), 3),
        (((384 * 50, 384, 1), (0, 384, 1), (384, 0, 1)), 3),
    ],
)
def test_dimensions_are_merged_where_all_tensors_allow_it(strides, num_dims):
    tensors = [torch.empty_strided((2, 50, 384), s) for s in strides]
    layout = layout_of(tensors)
    assert all(a is b for a, b in zip(layout.tensors, tensors, strict=True))
    assert (
        sum(n != 1 for n in (layout.num_rows // layout.num_inner, layout.num_inner)) == num_dims - 1
    )
    together = torch.stack([offsets_of(layout, i).reshape(-1) for i in range(3)], 1)
    each = [torch.arange(n) for n in (2, 50, 384)]
    grid = torch.cartesian_prod(*each)
    wanted = grid @ torch.tensor(strides).T
    assert torch.equal(together.unique(dim=0), wanted.unique(dim=0))


def test_more_dimensions_than_can_be_walked_are_copied():
    cut = torch.empty(3, 4, 5, 6)[:2, :3, :4, :5]
    other = torch.empty(2, 3, 4, 5)
    layout = layout_of((cut, other))
    assert layout.is_flat and layout.tensors[1] is other and layout.tensors[0] is not cut


def test_functions_are_the_ops_without_the_dispatcher():
    h, i, p = (fresh(2, 5, 8, seed=s) for s in range(3))
    assert torch.equal(residual_diff(h, i, p), OPS.residual_diff(h, i, p))
    assert torch.equal(residual_apply([h], [i])[0], OPS.residual_apply([h], [i])[0])
    outs = [torch.empty(2, 5, 8) for _ in range(2)]
    residual_store(h, i, outs[0])
    OPS.residual_store(h, i, outs[1])
    assert torch.equal(*outs)
