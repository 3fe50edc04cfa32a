"""`forecast_error`: what a region added to a stream, to be kept, and what a forecast of it would
have missed.

Reads `n + 3` elements and writes 1 at order `n` (0 to 4), for each element of a stream; two numbers
a sample come out. Two launches: partial sums of each chunk of a sample, then their sum in fixed
order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import chunks_of, launching, uses_triton
from dit_cachegraph_kernels._layout import as_samples, check_alike, layout_of
from dit_cachegraph_kernels._tiles import (
    COUNTS,
    block_range,
    load_tile,
    scaled_tile,
    store_tile,
    sum_partials,
)
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton
from dit_cachegraph_kernels.taylor_update import check_factors


def forecast_error(
    hidden: Tensor,
    hidden_in: Tensor | None,
    factors: Sequence[Tensor],
    coefficients: Sequence[float],
    batch_dim: int | None = 0,
) -> tuple[Tensor, Tensor]:
    """`hidden - hidden_in` in the dtype and layout of `hidden`, and per sample `sum|f - hidden|`
    and `sum|hidden|` of `f = hidden_in + sum_i coefficients[i] * factors[i]` in the same dtype.

    `hidden_in`: None for what is no sum, which stands for zeros. The sums are [B, 2] float32, over
    the samples along `batch_dim` (None: one sample).

    Raises:
        ValueError: shapes, devices or counts don't match, or there are more than 5 factors.
    """
    check_factors("forecast_error", factors, hidden=hidden)
    if hidden_in is not None:
        check_alike("forecast_error", hidden=hidden, hidden_in=hidden_in)
    if len(coefficients) != len(factors):
        counts = f"{len(factors)} factors and {len(coefficients)} coefficients"
        raise ValueError(f"forecast_error: got {counts}; each factor takes one")
    if uses_triton(hidden):
        return launch_forecast_error(hidden, hidden_in, factors, coefficients, batch_dim)
    return reference.forecast_error(hidden, hidden_in, factors, coefficients, batch_dim)


def launch_forecast_error(
    hidden: Tensor,
    hidden_in: Tensor | None,
    factors: Sequence[Tensor],
    coefficients: Sequence[float],
    batch_dim: int | None,
) -> tuple[Tensor, Tensor]:
    """The kernel's form of the op, for arguments that were checked."""
    out = torch.empty_like(hidden)
    # What is only read may stand in the places that are not used.
    given = (out, hidden, hidden if hidden_in is None else hidden_in, *factors)
    samples = [as_samples(x, batch_dim) for x in given]
    num_samples = samples[0].shape[0]
    if out.numel() == 0:
        return out, hidden.new_zeros(num_samples, 2, dtype=torch.float32)
    layout = layout_of(samples, first_dim=1)
    chunks, num_unused = chunks_of(layout), reference.MAX_ORDER + 1 - len(factors)
    num_programs = num_samples * chunks.num_chunks
    partials = hidden.new_empty(2 * num_programs, dtype=torch.float32)
    with launching("forecast_error", hidden):
        wrap_triton(_forecast_error_kernel, hidden)[(num_programs,)](
            *layout.sample_operands,
            *layout.sample_operands[5:10] * num_unused,
            partials,
            num_programs,
            *chunks.sizes,
            *(*map(float, coefficients), *[0.0] * num_unused),
            HAS_IN=hidden_in is not None,
            ORDER=len(factors) - 1,
            **chunks.blocks,
        )
        sums = sum_partials(partials, num_samples, chunks.num_chunks, num_planes=2)
    if layout.tensors[0] is not samples[0]:
        samples[0].copy_(layout.tensors[0])
    return out, sums


# fmt: off
@jit(do_not_specialize=COUNTS)
def _forecast_error_kernel(
    # Each tensor [B, rows, cols], with its strides; factors above ORDER are not read.
    out_ptr: tl.tensor, out_sample: tl.tensor,
    out_outer: tl.tensor, out_inner: tl.tensor, out_col: tl.tensor,
    hidden_ptr: tl.tensor, hidden_sample: tl.tensor,
    hidden_outer: tl.tensor, hidden_inner: tl.tensor, hidden_col: tl.tensor,
    in_ptr: tl.tensor, in_sample: tl.tensor,
    in_outer: tl.tensor, in_inner: tl.tensor, in_col: tl.tensor,
    d0_ptr: tl.tensor, d0_sample: tl.tensor,
    d0_outer: tl.tensor, d0_inner: tl.tensor, d0_col: tl.tensor,
    d1_ptr: tl.tensor, d1_sample: tl.tensor,
    d1_outer: tl.tensor, d1_inner: tl.tensor, d1_col: tl.tensor,
    d2_ptr: tl.tensor, d2_sample: tl.tensor,
    d2_outer: tl.tensor, d2_inner: tl.tensor, d2_col: tl.tensor,
    d3_ptr: tl.tensor, d3_sample: tl.tensor,
    d3_outer: tl.tensor, d3_inner: tl.tensor, d3_col: tl.tensor,
    d4_ptr: tl.tensor, d4_sample: tl.tensor,
    d4_outer: tl.tensor, d4_inner: tl.tensor, d4_col: tl.tensor,
    partials_ptr: tl.tensor,  # [2, B, num_chunks] float32
    plane: tl.tensor,  # its stride
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor,
    num_chunks: tl.tensor, num_col_chunks: tl.tensor,
    c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, c4: tl.tensor,  # coefficients
    HAS_IN: tl.constexpr, ORDER: tl.constexpr, NUM_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    pid = tl.program_id(0).to(tl.int64)
    sample, chunk = pid // num_chunks, pid % num_chunks
    out_ptr += sample * out_sample
    hidden_ptr += sample * hidden_sample
    rows = block_range(chunk // num_col_chunks, BLOCK_ROWS)
    moved = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    size = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    for tile in range(NUM_TILES):
        cols = block_range((chunk % num_col_chunks) * NUM_TILES + tile, BLOCK_COLS)
        inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
        hidden = load_tile(
            hidden_ptr, hidden_outer, hidden_inner, hidden_col, rows, cols, num_inner, inside
        )
        forecast = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
        if HAS_IN:
            forecast = load_tile(
                in_ptr + sample * in_sample, in_outer, in_inner, in_col,
                rows, cols, num_inner, inside,
            )
        store_tile(
            hidden - forecast, out_ptr, out_outer, out_inner, out_col,
            rows, cols, num_inner, inside,
        )
        forecast += scaled_tile(
            c0, d0_ptr + sample * d0_sample, d0_outer, d0_inner, d0_col,
            rows, cols, num_inner, inside,
        )
        if ORDER >= 1:
            forecast += scaled_tile(
                c1, d1_ptr + sample * d1_sample, d1_outer, d1_inner, d1_col,
                rows, cols, num_inner, inside,
            )
        if ORDER >= 2:
            forecast += scaled_tile(
                c2, d2_ptr + sample * d2_sample, d2_outer, d2_inner, d2_col,
                rows, cols, num_inner, inside,
            )
        if ORDER >= 3:
            forecast += scaled_tile(
                c3, d3_ptr + sample * d3_sample, d3_outer, d3_inner, d3_col,
                rows, cols, num_inner, inside,
            )
        if ORDER >= 4:
            forecast += scaled_tile(
                c4, d4_ptr + sample * d4_sample, d4_outer, d4_inner, d4_col,
                rows, cols, num_inner, inside,
            )
        # As it would be handed on.
        forecast = forecast.to(out_ptr.dtype.element_ty).to(tl.float32)
        moved += tl.abs(forecast - hidden)
        size += tl.abs(hidden)
    tl.store(partials_ptr + pid, tl.sum(moved))
    tl.store(partials_ptr + plane + pid, tl.sum(size))
# fmt: on
