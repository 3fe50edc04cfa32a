"""Rows of tensors whose first dimension is the batch: apart, and together again.

    [B, L, D] -> split -> B views [1, L, D]         cheap: nothing is copied
    some of these views -> together -> [n, L, D]    laid out as they lay in what they are rows of

What a row lay in says how compiled code expects it: with a stride of 0 where all samples shared one
value, with gaps where it is a part of something larger.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def apart(value: Tensor) -> tuple[Tensor, ...]:
    """Each row, a view [1, ...]."""
    return value.split(1)


def together(rows: Sequence[Tensor]) -> Tensor:
    """The rows [1, ...] as one tensor [n, ...], with the strides that each of them has."""
    first, num = rows[0], len(rows)
    if first.stride(0) == math.prod(first.shape[1:]) and first.is_contiguous():
        return torch.cat(list(rows))
    if first.stride(0) == 0:
        return first.expand(num, *first.shape[1:])
    out = torch.empty_strided(
        (num, *first.shape[1:]), first.stride(), dtype=first.dtype, device=first.device
    )
    for i, row in enumerate(rows):
        _once(out[i : i + 1]).copy_(_once(row))
    return out


def _once(tensor: Tensor) -> Tensor:
    """Without the repetitions of dimensions that repeat one value."""
    for dim, step in enumerate(tensor.stride()):
        if step == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
