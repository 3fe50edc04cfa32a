"""`residual_diff`: how far the residual of a step is from the one that is kept.

Reads 3 elements and writes nothing, for each element of the kept residual; two numbers a sample
come out. Two launches: partial sums of each chunk of a sample, then their sum in fixed order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import chunks_of, launching, uses_triton
from dit_cachegraph_kernels._layout import as_samples, check_alike, layout_of, thinned
from dit_cachegraph_kernels._tiles import COUNTS, as_float32, block_range, load_tile, sum_partials
from dit_cachegraph_kernels._triton import jit, tl, wrap_triton


def residual_diff(
    hidden: Tensor,
    hidden_in: Tensor,
    previous: Tensor,
    batch_dim: int | None = 0,
    token_mask: Tensor | None = None,
    downsample_factor: int = 1,
    important_condition_threshold: float = 0.0,
) -> Tensor:
    """Per sample `sum|r - p|` and `sum|p|` of `r = hidden - hidden_in` against `p = previous`.

    Returns [B, 2] float32. The samples lie along `batch_dim` (None: one sample). `token_mask`
    (bool, broadcast to [B, T...], samples first): tokens that count; what the others hold is not
    read. `downsample_factor`: `previous` has every k-th channel. `important_condition_threshold`:
    only tokens with `sum|r - p| > threshold * sum|p|` over their channels count, in a sample where
    there are any; tokens that aren't finite always count.

    Raises:
        ValueError: shapes or devices don't match, or the mask isn't bool.
    """
    hidden, hidden_in = (thinned(x, downsample_factor) for x in (hidden, hidden_in))
    check_alike("residual_diff", hidden=hidden, hidden_in=hidden_in, previous=previous)
    if token_mask is not None and token_mask.dtype != torch.bool:
        raise ValueError(f"residual_diff: token_mask must be bool, got {token_mask.dtype}")
    given = (hidden, hidden_in, previous, batch_dim, token_mask, 1, important_condition_threshold)
    if uses_triton(hidden):
        return launch_residual_diff(*given)
    return reference.residual_diff(*given)


def launch_residual_diff(
    hidden: Tensor,
    hidden_in: Tensor,
    previous: Tensor,
    batch_dim: int | None,
    token_mask: Tensor | None,
    downsample_factor: int,
    important_condition_threshold: float,
) -> Tensor:
    """The kernel's form of the op, for arguments that were checked."""
    streams = *(thinned(x, downsample_factor) for x in (hidden, hidden_in)), previous
    samples = [as_samples(x, batch_dim) for x in streams]
    if samples[0].numel() == 0:
        return hidden.new_zeros(samples[0].shape[0], 2, dtype=torch.float32)
    if token_mask is not None:
        mask = token_mask.view(torch.uint8).expand(samples[0].shape[:-1])
        samples.append(mask.unsqueeze(-1).expand(samples[0].shape))
    with launching("residual_diff", hidden):
        return _launch(samples, important_condition_threshold)


def _launch(samples: Sequence[Tensor], threshold: float) -> Tensor:
    """The sums of three streams, and perhaps a mask, that begin with the samples."""
    is_per_token, num_samples = threshold > 0, samples[0].shape[0]
    layout = layout_of(samples, first_dim=1, num_fixed=int(is_per_token))
    chunks = chunks_of(layout, has_whole_rows=is_per_token)
    num_planes, num_programs = 4 if is_per_token else 2, num_samples * chunks.num_chunks
    partials = samples[0].new_empty(num_planes * num_programs, dtype=torch.float32)
    operands, has_mask = layout.sample_operands, len(samples) == 4
    wrap_triton(_residual_diff_kernel, samples[0])[(num_programs,)](
        *(operands if has_mask else [*operands, *operands[:5]]),
        partials,
        num_programs,
        *chunks.sizes,
        threshold,
        HAS_MASK=has_mask,
        IS_PER_TOKEN=is_per_token,
        **chunks.blocks,
    )
    return sum_partials(partials, num_samples, chunks.num_chunks, num_planes)


# fmt: off
@jit(do_not_specialize=COUNTS)
def _residual_diff_kernel(
    # Each tensor [B, rows, cols], with its strides.
    hidden_ptr: tl.tensor, hidden_sample: tl.tensor,
    hidden_outer: tl.tensor, hidden_inner: tl.tensor, hidden_col: tl.tensor,
    in_ptr: tl.tensor, in_sample: tl.tensor,
    in_outer: tl.tensor, in_inner: tl.tensor, in_col: tl.tensor,
    prev_ptr: tl.tensor, prev_sample: tl.tensor,
    prev_outer: tl.tensor, prev_inner: tl.tensor, prev_col: tl.tensor,
    mask_ptr: tl.tensor, mask_sample: tl.tensor,  # uint8
    mask_outer: tl.tensor, mask_inner: tl.tensor, mask_col: tl.tensor,
    partials_ptr: tl.tensor,  # [2 or 4, B, num_chunks] float32
    plane: tl.tensor,  # its stride
    num_rows: tl.tensor, num_inner: tl.tensor, num_cols: tl.tensor,
    num_chunks: tl.tensor, num_col_chunks: tl.tensor,
    threshold: tl.tensor,
    HAS_MASK: tl.constexpr, IS_PER_TOKEN: tl.constexpr, NUM_TILES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
) -> None:
    # fmt: on
    pid = tl.program_id(0).to(tl.int64)
    sample, chunk = pid // num_chunks, pid % num_chunks
    hidden_ptr += sample * hidden_sample
    in_ptr += sample * in_sample
    prev_ptr += sample * prev_sample
    mask_ptr += sample * mask_sample
    rows = block_range(chunk // num_col_chunks, BLOCK_ROWS)
    moved_acc = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    size_acc = tl.zeros([BLOCK_ROWS, BLOCK_COLS], dtype=tl.float32)
    for tile in range(NUM_TILES):
        cols = block_range((chunk % num_col_chunks) * NUM_TILES + tile, BLOCK_COLS)
        inside = (rows < num_rows)[:, None] & (cols < num_cols)[None, :]
        if HAS_MASK:
            mask = load_tile(
                mask_ptr, mask_outer, mask_inner, mask_col, rows, cols, num_inner, inside
            )
            inside &= mask != 0.0
        hidden = load_tile(
            hidden_ptr, hidden_outer, hidden_inner, hidden_col, rows, cols, num_inner, inside
        )
        hidden_in = load_tile(in_ptr, in_outer, in_inner, in_col, rows, cols, num_inner, inside)
        prev = load_tile(prev_ptr, prev_outer, prev_inner, prev_col, rows, cols, num_inner, inside)
        moved_acc += tl.abs(hidden - hidden_in - prev)
        size_acc += tl.abs(prev)
    moved, size = tl.sum(moved_acc, axis=1), tl.sum(size_acc, axis=1)
    partials_ptr += pid
    if IS_PER_TOKEN:
        tl.store(partials_ptr + 2 * plane, tl.sum(moved, axis=0))
        tl.store(partials_ptr + 3 * plane, tl.sum(size, axis=0))
        counts = is_important(moved, size, threshold)
        moved = tl.where(counts, moved, 0.0)
        size = tl.where(counts, size, 0.0)
    tl.store(partials_ptr, tl.sum(moved, axis=0))
    tl.store(partials_ptr + plane, tl.sum(size, axis=0))


@jit
def is_important(moved: tl.tensor, size: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """Tokens that moved by more than `threshold` of their size, and those that aren't finite."""
    within = moved <= as_float32(threshold) * size
    within &= (moved < float("inf")) & (size < float("inf"))
    return within == 0
