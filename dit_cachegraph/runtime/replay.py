"""What a region does to its streams: kept when it computes, estimated when it is skipped.

computed   out = blocks(live_in)      the snapshot out - live_in joins the last few
hit        out = live_in + sum of weighted snapshots

What is no sum with its live-in (`Effect.is_whole`) is kept, and estimated, as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.plan import Effect, Region
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.runtime.cached_state import CachedRegion
from dit_cachegraph.runtime.slots import Values, tensor_at

Bases = tuple[Tensor | None, ...]


def bases_of(values: Values, region: Region, predictor: Predictor) -> Bases:
    """What each kept effect is relative to, where the region begins; None where it is whole."""
    if predictor.calibrator_cache_type == "hidden_states":
        return (None,) * len(region.effects)
    return tuple([_base_of(values, effect) for effect in region.effects])


def _base_of(values: Values, effect: Effect) -> Tensor | None:
    base = None if effect.live_in is None or effect.is_whole else values[effect.live_in]
    # Masks have no difference.
    return base if isinstance(base, Tensor) and base.dtype != torch.bool else None


def held_after(
    values: Values,
    region: Region,
    bases: Bases,
    before: CachedRegion | None,
    predictor: Predictor,
    step: int,
) -> CachedRegion:
    """What is held of a region that has computed, but for its probe. All tensors own their storage;
    those of `before` are left as they are."""
    snapshots = []
    for i, (effect, base) in enumerate(zip(region.effects, bases, strict=True)):
        out = tensor_at(values, effect.live_out)
        new = out.clone() if base is None else ops.residual(out, base)
        older = () if before is None else before.snapshots[i]
        num_older = _num_snapshots(effect, new, predictor) - 1
        snapshots.append((*older[-num_older:], new) if num_older else (new,))
    steps = () if before is None else before.steps
    return CachedRegion(None, (*steps, step)[-predictor.num_snapshots :], tuple(snapshots))


def _num_snapshots(effect: Effect, value: Tensor, predictor: Predictor) -> int:
    return predictor.num_snapshots if _is_forecast(effect, value, predictor) else 1


def _is_forecast(effect: Effect, value: Tensor, predictor: Predictor) -> bool:
    """False for what is replayed whatever the predictor says."""
    return value.is_floating_point() and (effect.is_hidden or predictor.enable_encoder_calibrator)


def estimates(
    region: Region, kept: CachedRegion, bases: Bases, predictor: Predictor, step: int
) -> tuple[Tensor, ...]:
    """The values that leave a region that is skipped at `step`, each in a storage of its own."""
    if not _is_replay(predictor.weights(kept.steps, step)):
        return tuple(
            _estimate(effect, base, snapshots, kept.steps, predictor, step)
            for effect, base, snapshots in zip(region.effects, bases, kept.snapshots, strict=True)
        )
    pairs = [(base, s[-1]) for base, s in zip(bases, kept.snapshots, strict=True)]
    moved = [(base, last) for base, last in pairs if base is not None]
    # All of them in one launch.
    applied = iter(ops.residual_apply([base for base, _ in moved], [last for _, last in moved]))
    return tuple(last.clone() if base is None else next(applied) for base, last in pairs)


def _estimate(
    effect: Effect,
    base: Tensor | None,
    snapshots: Sequence[Tensor],
    steps: Sequence[int],
    predictor: Predictor,
    step: int,
) -> Tensor:
    last = snapshots[-1]
    if not _is_forecast(effect, last, predictor):
        return last.clone() if base is None else torch.add(base, last)
    estimated = predictor.estimate(snapshots, steps, step)
    if estimated is not None:
        return estimated if base is None else torch.add(base, estimated)
    return ops.forecast(base, snapshots, predictor.weights(steps, step))


def _is_replay(weights: Sequence[float]) -> bool:
    return weights[-1] == 1.0 and not any(weights[:-1])


def error_sums(
    values: Values, region: Region, estimated: Sequence[Tensor], batch_dim: int | None
) -> Tensor:
    """What estimates missed of a region that has computed, over all its streams: per sample
    `sum|estimate - out|` and `sum|out|`, [B, 2]."""
    total = None
    for effect, estimate in zip(region.effects, estimated, strict=True):
        out = tensor_at(values, effect.live_out)
        if not out.is_floating_point():
            continue
        sums = ops.distance(estimate, out, batch_dim if effect.is_hidden else None)
        total = sums if total is None else total + sums
    return torch.zeros(1, 2) if total is None else total


def put(values: Values, region: Region, estimated: Sequence[Tensor]) -> None:
    """Take the place of the region: its values, and none of those that die in it."""
    for effect, value in zip(region.effects, estimated, strict=True):
        values[effect.live_out] = value
    for slot in region.dead_on_hit:
        values[slot] = None
