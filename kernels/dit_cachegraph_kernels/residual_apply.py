"""`residual_apply`: the replay of a region.

Reads 2 elements and writes 1, for one stream or two in one launch; further streams take a launch
for each two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import NUM_WARPS, Tiles, launching, tiles_of, uses_triton
from dit_cachegraph_kernels._layout import check_alike, layout_of
from dit_cachegraph_kernels._tiles import block_range, load_tile, store_tile
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton

STREAMS_PER_LAUNCH = 2


def residual_apply(hidden_in: Sequence[Tensor], residual: Sequence[Tensor]) -> list[Tensor]:
    """`hidden_in + residual` for each stream, in the dtype of `hidden_in`.

    Raises:
        ValueError: shapes, devices or the numbers of streams don't match.
    """
    if len(hidden_in) != len(residual):
        counts = f"{len(hidden_in)} streams and {len(residual)} residuals"
        raise ValueError(f"residual_apply: got {counts}; each stream takes one")
    for x, r in zip(hidden_in, residual, strict=True):
        check_alike("residual_apply", hidden_in=x, residual=r)
    if hidden_in and uses_triton(hidden_in[0]):
        return launch_residual_apply(hidden_in, residual)
    return reference.residual_apply(hidden_in, residual)


def launch_residual_apply(hidden_in: Sequence[Tensor], residual: Sequence[Tensor]) -> list[Tensor]:
    """The kernel's form of the op, for arguments that were checked."""
    streams = [_tiles(x, r) for x, r in zip(hidden_in, residual, strict=True)]
    not_empty = [tiles for tiles in streams if tiles.layout.tensors[0].numel() > 0]
    for i in range(0, len(not_empty), STREAMS_PER_LAUNCH):
        _launch(not_empty[i : i + STREAMS_PER_LAUNCH])
    return [tiles.layout.tensors[0] for tiles in streams]


def _tiles(hidden_in: Tensor, residual: Tensor) -> Tiles:
    return tiles_of(layout_of((torch.empty_like(hidden_in), hidden_in, residual)))


def _launch(streams: Sequence[Tiles]) -> None:
    first, last = streams[0], streams[-1]
    out = first.layout.tensors[0]
    first_operands, last_operands = first.layout.operands, last.layout.operands
    if len(streams) == 1:
        # What is only read stands in the place of a second output.
        last_operands[:4] = last_operands[4:8]
    with launching("residual_apply", out):
        wrap_triton(_residual_apply_kernel, out)[(sum(tiles.num_tiles for tiles in streams),)](
            *(*first_operands, *first.sizes, *last_operands, *last.sizes),
            first.num_tiles,
            NUM_STREAMS=len(streams),
            BLOCK_ROWS_0=first.block_rows,
            BLOCK_COLS_0=first.block_cols,
            BLOCK_ROWS_1=last.block_rows,
            BLOCK_COLS_1=last.block_cols,
            num_warps=NUM_WARPS,
        )


# fmt: off
@jit
def _apply_tile(
    tile: tl.tensor,
    out_ptr: tl.tensor, out_outer: tl.tensor, out_inner: tl.tensor, out_col: tl.tensor,
    in_ptr: tl.tensor, in_outer: tl.tensor, in_inner: tl.tensor, in_col: tl.tensor,
    res_ptr: tl.tensor, res_outer: tl.tensor, res_inner: tl.tensor, res_col: tl.tensor,
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor, num_col_tiles: tl.tensor,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    # fmt: on
    rows = block_range(tile // num_col_tiles, BLOCK_ROWS)
    cols = block_range(tile % num_col_tiles, BLOCK_COLS)
    is_inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
    hidden_in = load_tile(in_ptr, in_outer, in_inner, in_col, rows, cols, num_inner, is_inside)
    residual = load_tile(res_ptr, res_outer, res_inner, res_col, rows, cols, num_inner, is_inside)
    out = hidden_in + residual
    store_tile(out, out_ptr, out_outer, out_inner, out_col, rows, cols, num_inner, is_inside)


# fmt: off
@jit
def _residual_apply_kernel(
    # Stream 0: each tensor [rows, cols], with its strides.
    out_ptr_0: tl.tensor, out_outer_0: tl.tensor, out_inner_0: tl.tensor, out_col_0: tl.tensor,
    in_ptr_0: tl.tensor, in_outer_0: tl.tensor, in_inner_0: tl.tensor, in_col_0: tl.tensor,
    res_ptr_0: tl.tensor, res_outer_0: tl.tensor, res_inner_0: tl.tensor, res_col_0: tl.tensor,
    num_rows_0: tl.tensor, num_inner_0: tl.tensor,
    num_cols_0: tl.tensor, num_col_tiles_0: tl.tensor,
    # Stream 1, not looked at where there is one stream.
    out_ptr_1: tl.tensor, out_outer_1: tl.tensor, out_inner_1: tl.tensor, out_col_1: tl.tensor,
    in_ptr_1: tl.tensor, in_outer_1: tl.tensor, in_inner_1: tl.tensor, in_col_1: tl.tensor,
    res_ptr_1: tl.tensor, res_outer_1: tl.tensor, res_inner_1: tl.tensor, res_col_1: tl.tensor,
    num_rows_1: tl.tensor, num_inner_1: tl.tensor,
    num_cols_1: tl.tensor, num_col_tiles_1: tl.tensor,
    num_tiles_0: tl.tensor,
    NUM_STREAMS: tl.constexpr,
    BLOCK_ROWS_0: tl.constexpr, BLOCK_COLS_0: tl.constexpr,
    BLOCK_ROWS_1: tl.constexpr, BLOCK_COLS_1: tl.constexpr,
) -> None:
    pid = tl.program_id(0)
    if pid < num_tiles_0:
        _apply_tile(
            pid,
            out_ptr_0, out_outer_0, out_inner_0, out_col_0,
            in_ptr_0, in_outer_0, in_inner_0, in_col_0,
            res_ptr_0, res_outer_0, res_inner_0, res_col_0,
            num_rows_0, num_inner_0, num_cols_0, num_col_tiles_0,
            BLOCK_ROWS_0, BLOCK_COLS_0,
        )
    elif NUM_STREAMS == 2:
        _apply_tile(
            pid - num_tiles_0,
            out_ptr_1, out_outer_1, out_inner_1, out_col_1,
            in_ptr_1, in_outer_1, in_inner_1, in_col_1,
            res_ptr_1, res_outer_1, res_inner_1, res_col_1,
            num_rows_1, num_inner_1, num_cols_1, num_col_tiles_1,
            BLOCK_ROWS_1, BLOCK_COLS_1,
        )
# fmt: on
