"""The ops in plain PyTorch: what they mean, and how they run wherever no kernel does.

Inductor fuses each into one loop over its tensors. Everything is computed in float32, whatever the
dtypes, and rounded once at the end. Letters: B samples, T tokens, C channels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_cachegraph_kernels._layout import thinned

MAX_ORDER = 4

# Tokens that are summed together. A sum that is short and of a fixed length is never split over
# threads, so that it has the same bits whatever the batch is.
_GROUP = 256


def residual_diff(
    hidden: Tensor,
    hidden_in: Tensor,
    previous: Tensor,
    batch_dim: int | None = 0,
    token_mask: Tensor | None = None,
    downsample_factor: int = 1,
    important_condition_threshold: float = 0.0,
) -> Tensor:
    hidden, hidden_in = (thinned(x, downsample_factor) for x in (hidden, hidden_in))
    (hidden, hidden_in, previous), batch_dim = _with_channels_last(
        (hidden, hidden_in, previous), batch_dim
    )
    moved, size = _sums_per_token(hidden.float() - hidden_in.float(), previous.float(), batch_dim)
    if token_mask is not None:
        moved, size = (torch.where(token_mask, x, 0.0) for x in (moved, size))
    sums = _sums_per_sample(moved, size)
    if important_condition_threshold > 0:
        important = _is_important(moved, size, important_condition_threshold)
        of_important = _sums_per_sample(*(torch.where(important, x, 0.0) for x in (moved, size)))
        sums = torch.where(of_important[:, :1] != 0, of_important, sums)
    return sums


def _with_channels_last(
    tensors: Sequence[Tensor], batch_dim: int | None
) -> tuple[list[Tensor], int | None]:
    """Views with a last dimension that isn't that of the samples, and where the samples are."""
    num_dims = tensors[0].dim()
    if num_dims == 0 or (num_dims == 1 and batch_dim is not None):
        return [x.unsqueeze(-1) for x in tensors], None if batch_dim is None else 0
    if batch_dim is not None and batch_dim % num_dims == num_dims - 1:
        return [x.movedim(-1, 0) for x in tensors], 0
    return list(tensors), None if batch_dim is None else batch_dim % num_dims


def _sums_per_token(
    value: Tensor, previous: Tensor, batch_dim: int | None
) -> tuple[Tensor, Tensor]:
    """`sum|value - previous|` and `sum|previous|` over the channels: [B, T...] each.

    The samples come first only now: Inductor would read tensors that were turned before in two
    loops.
    """
    moved, size = (value - previous).abs().sum(-1), previous.abs().sum(-1)
    if batch_dim is None:
        return moved.unsqueeze(0), size.unsqueeze(0)
    return moved.movedim(batch_dim, 0), size.movedim(batch_dim, 0)


def _sums_per_sample(moved: Tensor, size: Tensor) -> Tensor:
    """[B, T...] and [B, T...] to [B, 2]."""
    return torch.stack([_sum_tokens(moved), _sum_tokens(size)], 1)


def _sum_tokens(x: Tensor) -> Tensor:
    x = x.unsqueeze(-1).flatten(1)
    # More than are needed: a compiler would make code of its own for a single group.
    num_groups = x.shape[1] // _GROUP + 2
    padded = F.pad(x, (0, num_groups * _GROUP - x.shape[1]))
    return padded.unflatten(1, (num_groups, _GROUP)).sum(2).sum(1)


def _is_important(moved: Tensor, size: Tensor, threshold: float) -> Tensor:
    """Tokens that moved by more than `threshold` of their size, and those that aren't finite."""
    within = (moved <= threshold * size) & (moved < math.inf) & (size < math.inf)
    return ~within


def residual_store(
    hidden: Tensor, hidden_in: Tensor, out: Tensor, downsample_factor: int = 1
) -> None:
    hidden, hidden_in = (thinned(x, downsample_factor) for x in (hidden, hidden_in))
    out.copy_(hidden.float() - hidden_in.float())


def residual_apply(hidden_in: Sequence[Tensor], residual: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(hidden_in, residual, strict=True)
    return [_laid_out_like(x, x.float() + r.float()) for x, r in pairs]


def _laid_out_like(hidden_in: Tensor, out: Tensor) -> Tensor:
    """The layout of a sum depends on all that is added; that of a stream may not."""
    return torch.empty_like(hidden_in).copy_(out)


def taylor_update(
    value: Tensor, factors: Sequence[Tensor], gap: float, gaps: Sequence[float] | None = None
) -> None:
    new = [value.float()]
    for old, gap_of_order in zip(factors, gaps_of(len(factors) - 1, gap, gaps), strict=False):
        new.append((new[-1] - old.float()) / gap_of_order)
    for factor, x in zip(factors, new, strict=True):
        factor.copy_(x)


def gaps_of(order: int, gap: float, gaps: Sequence[float] | None) -> list[float]:
    """What the difference of each order is divided by."""
    return [float(g) for g in ([gap] * order if gaps is None else gaps)]


def taylor_apply(
    hidden_in: Tensor,
    factors: Sequence[Tensor],
    k: float,
    coefficients: Sequence[float] | None = None,
) -> Tensor:
    out = hidden_in.float()
    for factor, c in zip(factors, coefficients_of(len(factors) - 1, k, coefficients), strict=True):
        out = out + factor.float() * c
    return _laid_out_like(hidden_in, out)


def coefficients_of(order: int, k: float, coefficients: Sequence[float] | None) -> list[float]:
    """What each factor is multiplied by."""
    if coefficients is not None:
        return [float(c) for c in coefficients]
    return [k**i / math.factorial(i) for i in range(order + 1)]


def forecast_error(
    hidden: Tensor,
    hidden_in: Tensor | None,
    factors: Sequence[Tensor],
    coefficients: Sequence[float],
    batch_dim: int | None = 0,
) -> tuple[Tensor, Tensor]:
    forecast = torch.zeros_like(hidden) if hidden_in is None else hidden_in
    residual = _laid_out_like(hidden, hidden.float() - forecast.float())
    out = forecast.float()
    for factor, c in zip(factors, coefficients, strict=True):
        out = out + factor.float() * c
    return residual, _block_sums(out.to(hidden.dtype), hidden, batch_dim)


def block_diff(
    inputs: Sequence[Tensor], cached: Sequence[Tensor], batch_dim: int | None = 0
) -> Tensor:
    pairs = zip(inputs, cached, strict=True)
    return torch.stack([_block_sums(x, c, batch_dim) for x, c in pairs])


def _block_sums(x: Tensor, cached: Tensor, batch_dim: int | None) -> Tensor:
    (x, cached), batch_dim = _with_channels_last((x, cached), batch_dim)
    return _sums_per_sample(*_sums_per_token(x.float(), cached.float(), batch_dim))
