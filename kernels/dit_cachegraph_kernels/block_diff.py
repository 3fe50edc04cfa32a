"""`block_diff`: how far the inputs of many blocks are from those that are kept, for DBPrune.

Reads 2 elements and writes nothing, for each element of each block; two numbers a block and sample
come out. Two launches, however many blocks there are: a table says where their tensors lie.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import chunks_of, launching, uses_triton
from dit_cachegraph_kernels._layout import Layout, as_samples, check_alike, layout_of
from dit_cachegraph_kernels._tiles import block_range, load_tile, sum_partials
from dit_cachegraph_kernels._triton import is_real, jit, tl

_WIDE_UNIT = 16


def block_diff(
    inputs: Sequence[Tensor], cached: Sequence[Tensor], batch_dim: int | None = 0
) -> Tensor:
    """Per block and sample `sum|x - c|` and `sum|c|`: [N, B, 2] float32.

    All tensors have one shape, all inputs one dtype, and all of what is cached one dtype. The
    samples lie along `batch_dim` (None: one sample). On a GPU it can't be captured into a CUDA
    graph: the table is copied from the host at each call.

    Raises:
        ValueError: shapes, dtypes or devices don't match, or there are no blocks.
    """
    _check(inputs, cached)
    if uses_triton(inputs[0]):
        is_traced = not all(is_real(x) for x in (*inputs, *cached))
        launch = _block_diff_op if is_traced else launch_block_diff
        return launch(inputs, cached, batch_dim)
    return reference.block_diff(inputs, cached, batch_dim)


def _check(inputs: Sequence[Tensor], cached: Sequence[Tensor]) -> None:
    if len(inputs) != len(cached) or not inputs:
        counts = f"{len(inputs)} inputs and {len(cached)} cached tensors"
        raise ValueError(f"block_diff: got {counts}; each block has one of both")
    named = {f"inputs[{i}]": x for i, x in enumerate(inputs)}
    named |= {f"cached[{i}]": x for i, x in enumerate(cached)}
    check_alike("block_diff", **named)
    for i, (x, c) in enumerate(zip(inputs, cached, strict=True)):
        if x.dtype != inputs[0].dtype or c.dtype != cached[0].dtype:
            raise ValueError(f"block_diff: block {i} has other dtypes than block 0; convert it")


def launch_block_diff(
    inputs: Sequence[Tensor], cached: Sequence[Tensor], batch_dim: int | None
) -> Tensor:
    """The kernel's form of the op, for arguments that were checked."""
    num_blocks = len(inputs)
    samples = [as_samples(x, batch_dim) for x in (*inputs, *cached)]
    num_samples = samples[0].shape[0]
    if samples[0].numel() == 0:
        return _empty_sums(inputs, cached, batch_dim).zero_()
    layout = layout_of(samples, first_dim=1)
    chunks = chunks_of(layout)
    table, unit = _table(layout, num_blocks)
    num_sums = num_blocks * num_samples
    num_programs = num_sums * chunks.num_chunks
    partials = table.new_empty(2 * num_programs, dtype=torch.float32)
    with launching("block_diff", table):
        _block_diff_kernel[(num_programs,)](
            table,
            layout.tensors[0],
            layout.tensors[num_blocks],
            partials,
            num_samples,
            *chunks.sizes,
            UNIT=unit,
            ARE_COLS_DENSE=all(strides[2] == 1 for strides in layout.strides),
            **chunks.blocks,
        )
        sums = sum_partials(partials, num_sums, chunks.num_chunks, num_planes=2)
    return sums.view(num_blocks, num_samples, 2)


# Opaque to compilers: a trace knows no addresses.
_block_diff_op = torch.library.custom_op(
    "dit_cachegraph::block_diff_kernel", launch_block_diff, mutates_args=()
)


@_block_diff_op.register_fake
def _empty_sums(
    inputs: Sequence[Tensor], cached: Sequence[Tensor], batch_dim: int | None
) -> Tensor:
    num_samples = 1 if batch_dim is None else inputs[0].shape[batch_dim]
    return inputs[0].new_empty(len(inputs), num_samples, 2, dtype=torch.float32)


def _table(layout: Layout, num_blocks: int) -> tuple[Tensor, int]:
    """[N, 10] int64 on the device, without waiting for it: for each block's input how far it begins
    from that of block 0, and its strides; then the same for what is cached.

    All but the strides of columns are counted in units, which are the second result: of 16 elements
    if that is possible, so that 16 bytes can be read at a time, else of one.
    """
    tensors = layout.tensors
    rows: list[tuple[int, ...]] = []
    for i, (x, strides) in enumerate(zip(tensors, layout.strides, strict=True)):
        first = tensors[i // num_blocks * num_blocks]
        begin = (x.data_ptr() - first.data_ptr()) // x.element_size()
        rows.append((begin, x.stride(0), *strides))
    is_aligned = all(number % _WIDE_UNIT == 0 for row in rows for number in row[:4])
    unit = _WIDE_UNIT if is_aligned else 1
    rows = [(*(number // unit for number in row[:4]), row[4]) for row in rows]
    pairs = zip(rows[:num_blocks], rows[num_blocks:], strict=True)
    numbers = [[*x, *c] for x, c in pairs]
    table = torch.tensor(numbers, device="cpu", pin_memory=tensors[0].is_cuda)
    return table.to(tensors[0].device, non_blocking=True), unit


# fmt: off
@jit
def _load_block_tile(
    first_ptr: tl.tensor,  # of block 0
    entry_ptr: tl.tensor,  # [5]: distance from block 0, strides of samples, rows and columns
    sample: tl.tensor, rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor, inside: tl.tensor,
    UNIT: tl.constexpr, ARE_COLS_DENSE: tl.constexpr,
) -> tl.tensor:
    # fmt: on
    # A product with a constant tells the compiler what it is a multiple of.
    begin = tl.load(entry_ptr) * UNIT
    stride_sample = tl.load(entry_ptr + 1) * UNIT
    outer = tl.load(entry_ptr + 2) * UNIT
    inner = tl.load(entry_ptr + 3) * UNIT
    col = 1 if ARE_COLS_DENSE else tl.load(entry_ptr + 4)
    base_ptr = first_ptr + begin + sample * stride_sample
    return load_tile(base_ptr, outer, inner, col, rows, cols, num_inner, inside)


# fmt: off
@jit(do_not_specialize=["num_samples", "num_chunks", "num_col_chunks"])
def _block_diff_kernel(
    table_ptr: tl.tensor,  # [N, 10] int64
    inputs_ptr: tl.tensor, cached_ptr: tl.tensor,  # of block 0
    partials_ptr: tl.tensor,  # [2, N, B, num_chunks] float32
    num_samples: tl.tensor, num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor,
    num_chunks: tl.tensor, num_col_chunks: tl.tensor,
    UNIT: tl.constexpr, ARE_COLS_DENSE: tl.constexpr,
    NUM_TILES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    # fmt: on
    pid = tl.program_id(0).to(tl.int64)
    entry_ptr = table_ptr + pid // (num_samples * num_chunks) * 10
    sample, chunk = pid // num_chunks % num_samples, pid % num_chunks
    rows = block_range(chunk // num_col_chunks, BLOCK_ROWS)
    moved = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    size = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    for tile in range(NUM_TILES):
        cols = block_range((chunk % num_col_chunks) * NUM_TILES + tile, BLOCK_COLS)
        inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
        # fmt: off
        x = _load_block_tile(
            inputs_ptr, entry_ptr,
            sample, rows, cols, num_inner, inside, UNIT, ARE_COLS_DENSE,
        )
        c = _load_block_tile(
            cached_ptr, entry_ptr + 5,
            sample, rows, cols, num_inner, inside, UNIT, ARE_COLS_DENSE,
        )
        # fmt: on
        moved += tl.abs(x - c)
        size += tl.abs(c)
    partials_ptr += pid
    tl.store(partials_ptr, tl.sum(moved))
    tl.store(partials_ptr + tl.num_programs(0), tl.sum(size))
