"""What a dry run records: at each step, computed in full, a sample of what any rule would have
compared and of what any predictor would have replayed.

Some steps compute twice, the second time from streams whose values are the next ones that their
type has: how far the two are apart is the noise of the model, below which no tolerance tells
anything. A model that rounds to few levels, as quantised ones do, makes much of a last bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Region
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.segments.slots import Values


def record(
    values: Values, region: Region, bases: Sequence[Tensor | None], batch_dim: int | None
) -> Recorded:
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


def rerounded(
    values: Values, region: Region, run: Callable[[Values], None], batch_dim: int | None
) -> tuple[Tensor, ...]:
    """What `record` samples of the streams after a region, where `run` computes it from streams a
    rounding away. The region is about to compute; the values themselves stay as they are."""
    nearby = list(values)
    for effect in region.effects:
        for slot in effect.live_ins:
            if isinstance(stream := values[slot], Tensor):
                nearby[slot] = _next_to(stream)
    run(nearby)
    return record(nearby, region, (None,) * len(region.effects), batch_dim).outs


def _next_to(stream: Tensor) -> Tensor:
    """Each value a last digit away, to either side in turn, so that no norm takes it out."""
    if not stream.is_floating_point():
        return stream
    signs = 1 - 2 * (torch.arange(stream.numel(), device=stream.device) % 2).view(stream.shape)
    return stream * (1 + torch.finfo(stream.dtype).eps * signs.to(stream.dtype))


def sampled(stream: Tensor, batch_dim: int | None) -> Tensor:
    """A sample of a stream on the host, [B, n] float32."""
    return ops.sampled(stream, batch_dim).to("cpu", torch.float32)
