"""`taylor_apply`: the forecast of a region's effect, on the fresh input.

Reads `n + 2` elements and writes 1 at order `n` (0 to 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import (
    SMALL_TILE,
    launching,
    tiles_of,
    uses_triton,
)
from dit_cachegraph_kernels._layout import layout_of
from dit_cachegraph_kernels._tiles import block_range, load_tile, scaled_tile, store_tile
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton
from dit_cachegraph_kernels.taylor_update import check_factors


def taylor_apply(
    hidden_in: Tensor,
    factors: Sequence[Tensor],
    k: float,
    coefficients: Sequence[float] | None = None,
) -> Tensor:
    """`hidden_in + sum_i factors[i] * k^i / i!`, in the dtype of `hidden_in`.

    `factors`: those of order 0 to n, as `taylor_update` leaves them; `k`: steps since then.
    `coefficients`: one number a factor instead of `k^i / i!`, for any other combination.

    Raises:
        ValueError: shapes or devices don't match, or the order is above 4.
    """
    check_factors("taylor_apply", factors, hidden_in=hidden_in)
    coefficients = reference.coefficients_of(len(factors) - 1, k, coefficients)
    if len(coefficients) != len(factors):
        counts = f"{len(factors)} factors and {len(coefficients)} coefficients"
        raise ValueError(f"taylor_apply: got {counts}; each factor takes one")
    if uses_triton(hidden_in):
        return launch_taylor_apply(hidden_in, factors, k, coefficients)
    return reference.taylor_apply(hidden_in, factors, k, coefficients)


def launch_taylor_apply(
    hidden_in: Tensor,
    factors: Sequence[Tensor],
    k: float,
    coefficients: Sequence[float] | None,
) -> Tensor:
    """The kernel's form of the op, for arguments that were checked."""
    out = torch.empty_like(hidden_in)
    if out.numel() == 0:
        return out
    order = len(factors) - 1
    num_unused = reference.MAX_ORDER - order
    layout = layout_of((out, hidden_in, *factors))
    tiles = tiles_of(layout, SMALL_TILE)
    with launching("taylor_apply", hidden_in):
        wrap_triton(_taylor_apply_kernel, hidden_in)[(tiles.num_tiles,)](
            *layout.operands,
            # What is only read may stand in the places that are not used.
            *layout.operands[4:8] * num_unused,
            *tiles.sizes,
            *reference.coefficients_of(order, k, coefficients),
            *[0.0] * num_unused,
            ORDER=order,
            **tiles.blocks,
        )
    return layout.tensors[0]


# fmt: off
@jit(do_not_specialize=["num_col_tiles"])
def _taylor_apply_kernel(
    # Each tensor [rows, cols], with its strides; factors above ORDER are not read.
    out_ptr: tl.tensor, out_outer: tl.tensor, out_inner: tl.tensor, out_col: tl.tensor,
    in_ptr: tl.tensor, in_outer: tl.tensor, in_inner: tl.tensor, in_col: tl.tensor,
    d0_ptr: tl.tensor, d0_outer: tl.tensor, d0_inner: tl.tensor, d0_col: tl.tensor,
    d1_ptr: tl.tensor, d1_outer: tl.tensor, d1_inner: tl.tensor, d1_col: tl.tensor,
    d2_ptr: tl.tensor, d2_outer: tl.tensor, d2_inner: tl.tensor, d2_col: tl.tensor,
    d3_ptr: tl.tensor, d3_outer: tl.tensor, d3_inner: tl.tensor, d3_col: tl.tensor,
    d4_ptr: tl.tensor, d4_outer: tl.tensor, d4_inner: tl.tensor, d4_col: tl.tensor,
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor, num_col_tiles: tl.tensor,
    c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, c4: tl.tensor,  # coefficients
    ORDER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    # fmt: on
    pid = tl.program_id(0)
    rows = block_range(pid // num_col_tiles, BLOCK_ROWS)
    cols = block_range(pid % num_col_tiles, BLOCK_COLS)
    is_inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
    acc = load_tile(in_ptr, in_outer, in_inner, in_col, rows, cols, num_inner, is_inside)
    acc += scaled_tile(
        c0, d0_ptr, d0_outer, d0_inner, d0_col, rows, cols, num_inner, is_inside
    )
    if ORDER >= 1:
        acc += scaled_tile(
            c1, d1_ptr, d1_outer, d1_inner, d1_col, rows, cols, num_inner, is_inside
        )
    if ORDER >= 2:
        acc += scaled_tile(
            c2, d2_ptr, d2_outer, d2_inner, d2_col, rows, cols, num_inner, is_inside
        )
    if ORDER >= 3:
        acc += scaled_tile(
            c3, d3_ptr, d3_outer, d3_inner, d3_col, rows, cols, num_inner, is_inside
        )
    if ORDER >= 4:
        acc += scaled_tile(
            c4, d4_ptr, d4_outer, d4_inner, d4_col, rows, cols, num_inner, is_inside
        )
    store_tile(acc, out_ptr, out_outer, out_inner, out_col, rows, cols, num_inner, is_inside)
