"""What a dry run records: at each step, computed in full, a sample of what any rule would have
compared and of what any predictor would have replayed."""

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Region
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.runtime.replay import Bases
from dit_cachegraph.segments.slots import Values


def record(values: Values, region: Region, bases: Bases, batch_dim: int | None) -> Recorded:
    """Sample what a region that has computed did."""
    effects, outs = [], []
    for effect, base in zip(region.effects, bases, strict=True):
        out = values[effect.live_out]
        if not isinstance(out, Tensor) or not out.is_floating_point():
            continue
        dim = batch_dim if effect.is_hidden else None
        outs.append(sampled(out, dim))
        effects.append(outs[-1] if base is None else outs[-1] - sampled(base, dim))
    return Recorded(None, tuple(effects), tuple(outs))


def sampled(stream: Tensor, batch_dim: int | None) -> Tensor:
    """A sample of a stream on the host, [B, n] float32."""
    return ops.sampled(stream, batch_dim).to("cpu", torch.float32)
