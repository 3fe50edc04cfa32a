"""What a forecast is fitted by: the inner products of the values that are kept, sample by sample,
on the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 1 << 20


def inner_products(
    snapshots: Sequence[Tensor], *, num_sampled: int | None = None, chunk: int = CHUNK
) -> Tensor:
    """[samples, n, n] float64 of n snapshots. Samples lie along dim 0 of three or more; those
    folded into another share a fit. It takes `num_sampled` elements of a sample or a few more, None
    for all, and makes a float64 copy of `chunk` of them at a time."""
    newest = snapshots[-1]
    num_samples = len(newest) if newest.ndim > 2 else 1
    flat = [s.flatten(1) if s.ndim > 2 else s.reshape(1, -1) for s in snapshots]
    if num_sampled is not None and newest.ndim:
        stride = _stride(flat[0].shape[1] // num_sampled, newest.shape[-1])
        flat = [s[:, ::stride] for s in flat]
    shape = (num_samples, len(flat), len(flat))
    products = flat[0].new_zeros(shape, dtype=torch.float64)
    for start in range(0, flat[0].shape[1], chunk):
        wide = torch.stack([s[:, start : start + chunk].double() for s in flat], dim=1)
        products = wide @ wide.mT + products
    return products


def one_a_sample(values: Tensor, stream: Tensor) -> Tensor:
    """One value for each fit, [samples], as a stream is multiplied by it."""
    return values.reshape(-1, *[1] * (stream.ndim - 1)) if stream.ndim else values.reshape(())


def _stride(at_most: int, num_channels: int) -> int:
    """From one sampled element to the next, through all channels: 4096 tokens of 3072 channels,
    sampled every 3072, would be one channel."""
    stride = max(1, at_most)
    while stride > 1 and math.gcd(stride, num_channels) > 1:
        stride -= 1
    return stride
