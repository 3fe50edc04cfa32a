"""The arithmetic of the cache path, in plain PyTorch: one function an operation.

`observe` is traced and compiled with the segments, so that it is one pass over three tensors; the
others are a single kernel each as they stand.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def residual_diff(
    hidden: Tensor, hidden_in: Tensor, previous: Tensor, batch_dim: int | None = 0
) -> Tensor:
    """Per sample `sum|r - p|` and `sum|p|` of `r = hidden - hidden_in` against `p = previous`.

    The three tensors have one shape, with the samples along `batch_dim` (None: one sample).
    Returns [2, B] float32; accumulated in float32 whatever the dtype, so that bfloat16 streams give
    the decisions that float32 ones do.
    """
    return torch.stack(_residual_sums(hidden, hidden_in, previous, batch_dim))


def _residual_sums(
    hidden: Tensor, hidden_in: Tensor, previous: Tensor, batch_dim: int | None
) -> list[Tensor]:
    p = previous.float()
    moved = (hidden.float() - hidden_in.float() - p).abs()
    return [_sum_per_sample(moved, batch_dim), _sum_per_sample(p.abs(), batch_dim)]


def _sum_per_sample(x: Tensor, batch_dim: int | None) -> Tensor:
    if batch_dim is None:
        return x.sum().reshape(1)
    return x.movedim(batch_dim, 0).flatten(1).sum(1)


def clock(timestep: Tensor) -> Tensor:
    """(max, sum) over all elements of a timestep, [2] float32. Both, because a timestep per token
    may begin with zeros for ever (the frame that image-to-video keeps)."""
    return torch.cat(_clock(timestep))


def _clock(timestep: Tensor) -> list[Tensor]:
    flat = timestep.float().reshape(-1)
    return [flat.amax().reshape(1), flat.sum().reshape(1)]


def observe(
    hidden: Tensor,
    hidden_in: Tensor,
    previous: Tensor,
    timesteps: Sequence[Tensor],
    batch_dim: int | None = 0,
) -> Tensor:
    """Everything that a decision reads, in one vector for one copy to the host:
    [2 * len(timesteps) + 2 * B] float32, first the clocks, then `residual_diff`."""
    clocks = [number for t in timesteps for number in _clock(t)]
    return torch.cat([*clocks, *_residual_sums(hidden, hidden_in, previous, batch_dim)])


def residual(hidden: Tensor, hidden_in: Tensor) -> Tensor:
    """What a region added to a stream, in a storage of its own."""
    return torch.sub(hidden, hidden_in)


def residual_apply(hidden_in: Tensor, kept: Tensor) -> Tensor:
    """The replay of a region: its last computed effect on the fresh input."""
    return torch.add(hidden_in, kept)
