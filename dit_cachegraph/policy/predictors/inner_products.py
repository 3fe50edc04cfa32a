"""What a forecast is fitted by: the inner products of the values that are kept, sample by sample,
on the device."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["low", "medium", "high"]
NUM_SAMPLED = 4096
CHUNK = 1 << 20


def inner_products(snapshots: Sequence[Tensor], precision: Precision = "medium") -> Tensor:
    """[samples, n, n] float64 of n snapshots. Samples lie along dim 0 of three or more; those
    folded into another share a fit. "low" takes some 4096 elements of a sample, "medium" all,
    "high" all at once, which takes a float64 copy of them."""
    newest = snapshots[-1]
    num_samples = len(newest) if newest.ndim > 2 else 1
    flat = [s.flatten(1) if s.ndim > 2 else s.reshape(1, -1) for s in snapshots]
    if precision == "low":
        flat = [s[:, :: _stride(s.shape[1], newest.shape[-1])] for s in flat]
    chunk = flat[0].shape[1] if precision == "high" else CHUNK
    shape = (num_samples, len(flat), len(flat))
    products = flat[0].new_zeros(shape, dtype=torch.float64)
    for start in range(0, flat[0].shape[1], chunk):
        wide = torch.stack([s[:, start : start + chunk].double() for s in flat], dim=1)
        products = wide @ wide.mT + products
    return products


def one_a_sample(values: Tensor, stream: Tensor) -> Tensor:
    """One value for each fit, [samples], as a stream is multiplied by it."""
    return values.reshape(-1, *[1] * (stream.ndim - 1)) if stream.ndim else values.reshape(())


def _stride(num_elements: int, num_channels: int) -> int:
    """From one sampled element to the next, through all channels: 4096 tokens of 3072 channels,
    sampled every 3072, would be one channel."""
    stride = max(1, num_elements // NUM_SAMPLED)
    while math.gcd(stride, num_channels) > 1:
        stride += 1
    return stride
