"""`taylor_update`: finite differences of what a computed step gave, over the steps in between.

Reads `n + 1` elements and writes `n + 1` at order `n` (0 to 4): the value and all old factors but
the last.
"""

from collections.abc import Sequence

from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import (
    SMALL_TILE,
    launching,
    tiles_of,
    uses_triton,
)
from dit_cachegraph_kernels._layout import check_alike, layout_of
from dit_cachegraph_kernels._tiles import as_float32, block_range, load_tile, store_tile
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton


def taylor_update(
    value: Tensor, factors: Sequence[Tensor], gap: float, gaps: Sequence[float] | None = None
) -> None:
    """`d_0 = value` and `d_{i+1} = (d_i - old d_i) / gap`, in place.

    `factors`: those of order 0 to n, as many as the history allows; tensors with storages of their
    own. `gap`: steps since the last update. `gaps`: one number an order instead; with the steps
    since the i-th last update, the factors are divided differences, which are exact on uneven steps
    too.

    Raises:
        ValueError: shapes or devices don't match, the order is above 4, or a gap is 0.
    """
    check_factors("taylor_update", factors, value=value)
    order = len(factors) - 1
    gaps = reference.gaps_of(order, gap, gaps)
    if len(gaps) != order or 0 in gaps:
        raise ValueError(f"taylor_update: order {order} takes {order} gaps, none 0; got {gaps}")
    if uses_triton(value):
        launch_taylor_update(value, factors, gap, gaps)
    else:
        reference.taylor_update(value, factors, gap, gaps)


def check_factors(op: str, factors: Sequence[Tensor], **like: Tensor) -> None:
    """
    Raises:
        ValueError: the factors are too many or none, or unlike the tensor that they are for.
    """
    if not 1 <= len(factors) <= reference.MAX_ORDER + 1:
        most = reference.MAX_ORDER + 1
        raise ValueError(f"{op}: there must be 1 to {most} factors, got {len(factors)}")
    named = {f"factors[{i}]": factor for i, factor in enumerate(factors)}
    check_alike(op, **like, **named)


def launch_taylor_update(
    value: Tensor, factors: Sequence[Tensor], gap: float, gaps: Sequence[float] | None
) -> None:
    """The kernel's form of the op, for arguments that were checked."""
    if value.numel() == 0:
        return
    order = len(factors) - 1
    scales = [1.0 / g for g in reference.gaps_of(order, gap, gaps)]
    num_unused = reference.MAX_ORDER - order
    layout = layout_of((value, *factors))
    tiles = tiles_of(layout, SMALL_TILE)
    with launching("taylor_update", value):
        wrap_triton(_taylor_update_kernel, value)[(tiles.num_tiles,)](
            *layout.operands,
            # What is only read may stand in the places that are not used.
            *layout.operands[:4] * num_unused,
            *tiles.sizes,
            *(*scales, *[0.0] * num_unused),
            ORDER=order,
            **tiles.blocks,
        )
    for factor, written in zip(factors, layout.tensors[1:], strict=True):
        if written is not factor:
            factor.copy_(written)


# fmt: off
@jit
def _update_factor(
    new: tl.tensor,
    d_ptr: tl.tensor, outer: tl.tensor, inner: tl.tensor, col: tl.tensor,
    rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor, is_inside: tl.tensor,
    scale: tl.tensor,
    IS_LAST: tl.constexpr,
) -> tl.tensor:
    """Put the new factor in the place of the old, and give the new one of the next order."""
    # fmt: on
    following = new
    if not IS_LAST:
        old = load_tile(d_ptr, outer, inner, col, rows, cols, num_inner, is_inside)
        following = (new - old) * as_float32(scale)
    store_tile(new, d_ptr, outer, inner, col, rows, cols, num_inner, is_inside)
    return following


# fmt: off
@jit
def _taylor_update_kernel(
    # Each tensor [rows, cols], with its strides; factors above ORDER are not touched.
    value_ptr: tl.tensor, value_outer: tl.tensor, value_inner: tl.tensor, value_col: tl.tensor,
    d0_ptr: tl.tensor, d0_outer: tl.tensor, d0_inner: tl.tensor, d0_col: tl.tensor,
    d1_ptr: tl.tensor, d1_outer: tl.tensor, d1_inner: tl.tensor, d1_col: tl.tensor,
    d2_ptr: tl.tensor, d2_outer: tl.tensor, d2_inner: tl.tensor, d2_col: tl.tensor,
    d3_ptr: tl.tensor, d3_outer: tl.tensor, d3_inner: tl.tensor, d3_col: tl.tensor,
    d4_ptr: tl.tensor, d4_outer: tl.tensor, d4_inner: tl.tensor, d4_col: tl.tensor,
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor, num_col_tiles: tl.tensor,
    scale_1: tl.tensor, scale_2: tl.tensor, scale_3: tl.tensor, scale_4: tl.tensor,  # 1 / gap
    ORDER: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    pid = tl.program_id(0)
    rows = block_range(pid // num_col_tiles, BLOCK_ROWS)
    cols = block_range(pid % num_col_tiles, BLOCK_COLS)
    is_inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
    new = load_tile(
        value_ptr, value_outer, value_inner, value_col, rows, cols, num_inner, is_inside
    )
    new = _update_factor(
        new, d0_ptr, d0_outer, d0_inner, d0_col, rows, cols, num_inner, is_inside,
        scale_1, IS_LAST=ORDER == 0,
    )
    if ORDER >= 1:
        new = _update_factor(
            new, d1_ptr, d1_outer, d1_inner, d1_col, rows, cols, num_inner, is_inside,
            scale_2, IS_LAST=ORDER == 1,
        )
    if ORDER >= 2:
        new = _update_factor(
            new, d2_ptr, d2_outer, d2_inner, d2_col, rows, cols, num_inner, is_inside,
            scale_3, IS_LAST=ORDER == 2,
        )
    if ORDER >= 3:
        new = _update_factor(
            new, d3_ptr, d3_outer, d3_inner, d3_col, rows, cols, num_inner, is_inside,
            scale_4, IS_LAST=ORDER == 3,
        )
    if ORDER >= 4:
        _update_factor(
            new, d4_ptr, d4_outer, d4_inner, d4_col, rows, cols, num_inner, is_inside,
            scale_4, IS_LAST=ORDER == 4,
        )
# fmt: on
