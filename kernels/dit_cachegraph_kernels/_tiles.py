"""Parts that kernels share: where a tile lies, and the second pass of a sum.

All offsets are 64 bits wide, so that a tensor may have more than 2^31 elements.
"""

from torch import Tensor

from dit_cachegraph_kernels._launch import NUM_WARPS
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton

_BLOCK_PARTIALS = 2048

# Numbers of programs. They change with the sizes of a stream, and a kernel is no better for knowing
# what divides them: with them left alone, one serves every size.
COUNTS = ("plane", "num_chunks", "num_col_chunks")


@jit
def block_range(block: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The rows, or columns, of the n-th block of `BLOCK`."""
    return block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@jit
def as_float32(number: tl.tensor) -> tl.tensor:
    """A number of the host. In a compiled graph it comes as float64, and would take all that it
    meets along."""
    return tl.cast(number, tl.float32)


# fmt: off
@jit
def tile_offsets(
    outer: tl.tensor, inner: tl.tensor, col: tl.tensor,  # strides
    rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor,
) -> tl.tensor:
    """Where the elements of a tile lie in a tensor: [BLOCK_ROWS, BLOCK_COLS]."""
    row_offsets = (rows // num_inner) * outer + (rows % num_inner) * inner
    return row_offsets[:, None] + (cols * col)[None, :]


@jit
def load_tile(
    x_ptr: tl.tensor, outer: tl.tensor, inner: tl.tensor, col: tl.tensor,
    rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor, is_inside: tl.tensor,
) -> tl.tensor:
    """A tile in float32, with zeros beside the tensor."""
    offs = tile_offsets(outer, inner, col, rows, cols, num_inner)
    return tl.load(x_ptr + offs, mask=is_inside, other=0.0).to(tl.float32)


@jit
def scaled_tile(
    scale: tl.tensor,
    x_ptr: tl.tensor, outer: tl.tensor, inner: tl.tensor, col: tl.tensor,
    rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor, is_inside: tl.tensor,
) -> tl.tensor:
    """A tile times a number of the host, in float32."""
    return as_float32(scale) * load_tile(
        x_ptr, outer, inner, col, rows, cols, num_inner, is_inside
    )


@jit
def store_tile(
    x: tl.tensor,
    x_ptr: tl.tensor, outer: tl.tensor, inner: tl.tensor, col: tl.tensor,
    rows: tl.tensor, cols: tl.tensor, num_inner: tl.tensor, is_inside: tl.tensor,
) -> None:
    """Write a tile in the dtype of the tensor."""
    tl.store(x_ptr + tile_offsets(outer, inner, col, rows, cols, num_inner), x, mask=is_inside)
# fmt: on


@jit
def _sum_plane(
    partials_ptr: tl.tensor, num_chunks: tl.tensor, BLOCK_PARTIALS: tl.constexpr
) -> tl.tensor:
    acc = tl.zeros([BLOCK_PARTIALS], dtype=tl.float32)
    for start in range(0, num_chunks, BLOCK_PARTIALS):
        offs = start + tl.arange(0, BLOCK_PARTIALS)
        acc += tl.load(partials_ptr + offs, mask=offs < num_chunks, other=0.0)
    return tl.sum(acc, axis=0)


@jit(do_not_specialize=COUNTS[:2])
def _sum_partials_kernel(
    partials_ptr: tl.tensor,  # [NUM_PLANES, num_samples, num_chunks]
    sums_ptr: tl.tensor,  # [num_samples, 2]
    plane: tl.tensor,  # its stride
    num_chunks: tl.tensor,
    NUM_PLANES: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
) -> None:
    sample = tl.program_id(0).to(tl.int64)
    partials_ptr += sample * num_chunks
    moved = _sum_plane(partials_ptr, num_chunks, BLOCK_PARTIALS)
    size = _sum_plane(partials_ptr + plane, num_chunks, BLOCK_PARTIALS)
    if NUM_PLANES == 4:
        all_moved = _sum_plane(partials_ptr + 2 * plane, num_chunks, BLOCK_PARTIALS)
        all_size = _sum_plane(partials_ptr + 3 * plane, num_chunks, BLOCK_PARTIALS)
        # No token was important. (A sum that is NaN differs from 0.)
        is_empty = moved == 0.0
        moved = tl.where(is_empty, all_moved, moved)
        size = tl.where(is_empty, all_size, size)
    tl.store(sums_ptr + sample * 2, moved)
    tl.store(sums_ptr + sample * 2 + 1, size)


def sum_partials(partials: Tensor, num_samples: int, num_chunks: int, num_planes: int) -> Tensor:
    """The second pass: one program a sample adds its partial sums in their order.

    `partials`: [num_planes, num_samples, num_chunks], flat, so that a trace need not know whether a
    size is 1. Of four planes the first two hold important tokens alone, and count where there are
    any. Returns [num_samples, 2].
    """
    sums = partials.new_empty(num_samples, 2)
    wrap_triton(_sum_partials_kernel, partials)[(num_samples,)](
        partials,
        sums,
        num_samples * num_chunks,
        num_chunks,
        NUM_PLANES=num_planes,
        BLOCK_PARTIALS=_BLOCK_PARTIALS,
        num_warps=NUM_WARPS,
    )
    return sums
