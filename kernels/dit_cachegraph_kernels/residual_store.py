"""`residual_store`: what a region added to a stream, into the state.

Reads 2 elements and writes 1.
"""

from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import launching, tiles_of, uses_triton
from dit_cachegraph_kernels._layout import check_alike, layout_of, thinned
from dit_cachegraph_kernels._tiles import block_range, load_tile, store_tile
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton


def residual_store(
    hidden: Tensor, hidden_in: Tensor, out: Tensor, downsample_factor: int = 1
) -> None:
    """`out = hidden - hidden_in`, in the dtype of `out`.

    `downsample_factor`: `out` takes every k-th channel. `out` may not share memory with the others.

    Raises:
        ValueError: shapes or devices don't match.
    """
    hidden, hidden_in = (thinned(x, downsample_factor) for x in (hidden, hidden_in))
    check_alike("residual_store", hidden=hidden, hidden_in=hidden_in, out=out)
    if uses_triton(out):
        launch_residual_store(hidden, hidden_in, out)
    else:
        reference.residual_store(hidden, hidden_in, out)


def launch_residual_store(
    hidden: Tensor, hidden_in: Tensor, out: Tensor, downsample_factor: int = 1
) -> None:
    """The kernel's form of the op, for arguments that were checked."""
    hidden, hidden_in = (thinned(x, downsample_factor) for x in (hidden, hidden_in))
    if out.numel() == 0:
        return
    layout = layout_of((out, hidden, hidden_in))
    tiles = tiles_of(layout)
    with launching("residual_store", out):
        wrap_triton(_residual_store_kernel, out)[(tiles.num_tiles,)](
            *layout.operands, *tiles.sizes, **tiles.blocks
        )
    if layout.tensors[0] is not out:
        out.copy_(layout.tensors[0])


# fmt: off
@jit
def _residual_store_kernel(
    # Each tensor [rows, cols], with its strides.
    out_ptr: tl.tensor, out_outer: tl.tensor, out_inner: tl.tensor, out_col: tl.tensor,
    hidden_ptr: tl.tensor, hidden_outer: tl.tensor, hidden_inner: tl.tensor, hidden_col: tl.tensor,
    in_ptr: tl.tensor, in_outer: tl.tensor, in_inner: tl.tensor, in_col: tl.tensor,
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor, num_col_tiles: tl.tensor,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    # fmt: on
    pid = tl.program_id(0)
    rows = block_range(pid // num_col_tiles, BLOCK_ROWS)
    cols = block_range(pid % num_col_tiles, BLOCK_COLS)
    is_inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
    hidden = load_tile(
        hidden_ptr, hidden_outer, hidden_inner, hidden_col, rows, cols, num_inner, is_inside
    )
    hidden_in = load_tile(in_ptr, in_outer, in_inner, in_col, rows, cols, num_inner, is_inside)
    residual = hidden - hidden_in
    store_tile(
        residual, out_ptr, out_outer, out_inner, out_col, rows, cols, num_inner, is_inside
    )
