"""What a region does to its streams: kept when it computes, estimated when it is skipped.

computed   out = blocks(live_in)      the snapshot out - live_in joins the last few
hit        out = live_in + sum of weighted snapshots

What is no sum with its live-in (`Effect.is_whole`) is kept, and estimated, as it is.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Effect, Region
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.runtime.cached_state import CachedRegion
from dit_cachegraph.runtime.slots import Values, tensor_at

Bases = tuple[Tensor | None, ...]


def bases_of(values: Values, region: Region) -> Bases:
    """What each kept effect is relative to, where the region begins; None where it is whole."""
    if region.predictor.calibrator_cache_type == "hidden_states":
        return (None,) * len(region.effects)
    return tuple([_base_of(values, effect) for effect in region.effects])


def _base_of(values: Values, effect: Effect) -> Tensor | None:
    base = None if effect.live_in is None or effect.is_whole else values[effect.live_in]
    # Masks have no difference.
    return base if isinstance(base, Tensor) and base.dtype != torch.bool else None


def snapshots_of(values: Values, region: Region, bases: Bases) -> tuple[Tensor, ...]:
    """What a region that has computed did to each stream, each in a storage of its own."""
    outs = [tensor_at(values, effect.live_out) for effect in region.effects]
    pairs = zip(outs, bases, strict=True)
    return tuple([out.clone() if b is None else ops.residual(out, b) for out, b in pairs])


def joined(
    region: Region, before: CachedRegion | None, new: Sequence[Tensor], step: int
) -> CachedRegion:
    """What is held once the snapshots of `step` have joined those before; the oldest make room."""
    older = (((),) * len(new), ()) if before is None else (before.snapshots, before.steps)
    streams = []
    for effect, of_stream, snapshot in zip(region.effects, older[0], new, strict=True):
        is_forecast = _is_forecast(effect, snapshot, region.predictor)
        num_kept = region.predictor.num_snapshots if is_forecast else 1
        streams.append((*of_stream, snapshot)[-num_kept:])
    steps = (*older[1], step)[-region.predictor.num_snapshots :]
    return CachedRegion(None, steps, tuple(streams))


def _is_forecast(effect: Effect, value: Tensor, predictor: Predictor) -> bool:
    """False for what is replayed whatever the predictor says."""
    return value.is_floating_point() and (effect.is_hidden or predictor.enable_encoder_calibrator)


def estimates(region: Region, kept: CachedRegion, bases: Bases, step: int) -> Sequence[Tensor]:
    """The values that leave a region that is skipped at `step`, each in a storage of its own."""
    weights = region.predictor.weights(kept.steps, step)
    if not _is_replay(weights):
        return list(_forecasts(region, kept, bases, step))
    pairs = [(base, s[-1]) for base, s in zip(bases, kept.snapshots, strict=True)]
    moved = [(base, last) for base, last in pairs if base is not None]
    # All of them in one launch.
    applied = iter(ops.residual_apply([base for base, _ in moved], [last for _, last in moved]))
    return [last.clone() if base is None else next(applied) for base, last in pairs]


def _forecasts(region: Region, kept: CachedRegion, bases: Bases, step: int) -> Iterator[Tensor]:
    predictor, steps = region.predictor, kept.steps
    for effect, base, snapshots in zip(region.effects, bases, kept.snapshots, strict=True):
        if _is_forecast(effect, snapshots[-1], predictor):
            done = predictor.estimate(snapshots, steps, step)
        else:
            done = snapshots[-1].clone() if base is None else snapshots[-1]
        if done is None:
            yield ops.forecast(base, snapshots, predictor.weights(steps, step))
        else:
            yield done if base is None else torch.add(base, done)


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
