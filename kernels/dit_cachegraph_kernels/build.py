"""Every kernel that a driver calls by itself, built before it is called: Triton compiles one at its
first launch, for a dtype, a tile, and what it knows of sizes and strides.

A stream is contiguous, and all of one width and dtype share their kernels, if 16 divides the width.
"""

from collections.abc import Callable, Iterator
from types import MappingProxyType

import torch
from torch import Tensor

from dit_cachegraph_kernels import reference
from dit_cachegraph_kernels._launch import TILE, TILES_PER_CHUNK
from dit_cachegraph_kernels.block_diff import block_diff
from dit_cachegraph_kernels.forecast_error import forecast_error
from dit_cachegraph_kernels.residual_diff import residual_diff
from dit_cachegraph_kernels.taylor_apply import taylor_apply

_OPS: MappingProxyType[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = MappingProxyType({
    "residual_diff": residual_diff,
    "taylor_apply": taylor_apply,
    "forecast_error": forecast_error,
    "block_diff": block_diff,
})  # fmt: skip


def build_kernels(
    dtype: torch.dtype, device: torch.device, num_channels: int, batch_dim: int | None
) -> None:
    """Launch each once, on a few tokens. A device without kernels is left alone."""
    if device.type == "cuda":
        for op, arguments in calls_of(dtype, device, num_channels, batch_dim):
            _OPS[op](*arguments)


def calls_of(
    dtype: torch.dtype, device: torch.device, num_channels: int, batch_dim: int | None
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """(op, arguments) of as many calls as there are kernels, for streams of this width."""
    enough = TILES_PER_CHUNK * TILE // num_channels + 1
    for num_samples, num_tokens in _sizes(enough, has_rows=bool(batch_dim)):
        shape = [num_tokens, num_channels]
        if batch_dim is not None:
            shape.insert(batch_dim, num_samples)
        x = torch.zeros(shape, dtype=dtype, device=device)
        nothing = x.new_zeros(()).expand(x.shape)
        for threshold in (0.0, 0.1):
            yield "residual_diff", (x, nothing, x, batch_dim, None, 1, threshold)
        for num_factors in range(1, reference.MAX_ORDER + 2):
            factors, coefficients = [x] * num_factors, [0.5] * num_factors
            yield "taylor_apply", (x, factors, 0.0, coefficients)
            for entry in (x, None):
                yield "forecast_error", (x, entry, factors, coefficients, batch_dim)
        yield "block_diff", ([x], [x], batch_dim)


def _sizes(enough: int, has_rows: bool) -> Iterator[tuple[int, int]]:
    """(samples, tokens). With samples between the tokens, a sample is many rows instead of one, and
    it matters whether 16 divides how many."""
    yield 1, enough
    if has_rows:
        yield 2, enough | 1
        yield 2, -enough // 16 * -16
