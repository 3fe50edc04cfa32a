"""What a region does to its streams: kept when it computes, estimated when it is skipped.

computed   out = blocks(live_in)      the snapshot out - live_in joins the last few
hit        out = live_in + sum of weighted snapshots

What is no sum with its live-in (`Effect.is_whole`) is kept, and estimated, as it is. The live-in of
what was several streams where the region begins is these in one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Effect, Region
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.runtime.cached_state import CachedRegion
from dit_cachegraph.segments.slots import Values, joined_at, tensor_at

Bases = tuple[Tensor | None, ...]


def bases_of(values: Values, region: Region) -> Bases:
    """What each kept effect is relative to, where the region begins; None where it is whole."""
    return tuple([_base_of(values, effect, region.predictor) for effect in region.effects])


def _base_of(values: Values, effect: Effect, predictor: Predictor) -> Tensor | None:
    is_whole = effect.is_whole or (
        predictor.calibrator_cache_type == "hidden_states" and _may_be_forecast(effect, predictor)
    )
    if effect.parts and not is_whole:
        return joined_at(values, effect.parts, effect.dim)
    base = None if effect.live_in is None or is_whole else values[effect.live_in]
    # Masks have no difference.
    return base if isinstance(base, Tensor) and base.dtype != torch.bool else None


def snapshots_of(values: Values, region: Region, bases: Bases) -> tuple[Tensor, ...]:
    """What a region that has computed did to each stream, each in a storage of its own."""
    outs = [tensor_at(values, effect.live_out) for effect in region.effects]
    return tuple([ops.residual(out, base) for out, base in zip(outs, bases, strict=True)])


def judged_snapshots(
    values: Values,
    region: Region,
    kept: CachedRegion,
    bases: Bases,
    step: int,
    batch_dim: int | None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The same, and what estimates by what is `kept` would have missed of them, over all streams:
    per sample `sum|estimate - out|` and `sum|out|`, [B, 2]."""
    found, total = [], None
    for effect, base, before in zip(region.effects, bases, kept.snapshots, strict=True):
        out = tensor_at(values, effect.live_out)
        if not out.is_floating_point():
            found.append(ops.residual(out, base))
            continue
        known, weights = _weighted(effect, before, region.predictor, kept.steps, step)
        dim = batch_dim if effect.is_hidden else None
        snapshot, sums = ops.forecast_error(out, base, known, weights, dim)
        found.append(snapshot)
        total = sums if total is None else total + sums
    return tuple(found), torch.zeros(1, 2, device="cpu") if total is None else total


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
    return value.is_floating_point() and _may_be_forecast(effect, predictor)


def _may_be_forecast(effect: Effect, predictor: Predictor) -> bool:
    return effect.is_hidden or predictor.enable_encoder_calibrator


def estimates(region: Region, kept: CachedRegion, bases: Bases, step: int) -> Iterator[Tensor]:
    """The values that leave a region that is skipped at `step`, each in a storage of its own."""
    for effect, base, before in zip(region.effects, bases, kept.snapshots, strict=True):
        known, weights = _weighted(effect, before, region.predictor, kept.steps, step)
        is_made = known[-1] is not before[-1]
        yield known[-1] if is_made and base is None else ops.forecast(base, known, weights)


def _weighted(
    effect: Effect,
    snapshots: Sequence[Tensor],
    predictor: Predictor,
    steps: Sequence[int],
    step: int,
) -> tuple[Sequence[Tensor], Sequence[float]]:
    """What the estimate at `step` of an effect is a sum of. What the predictor has made itself is
    all of it."""
    if not _is_forecast(effect, snapshots[-1], predictor):
        return snapshots[-1:], (1.0,)
    made = predictor.estimate(snapshots, steps, step)
    return (snapshots, predictor.weights(steps, step)) if made is None else ((made,), (1.0,))


def reuse(values: Values, region: Region, kept: CachedRegion, step: int) -> None:
    """Take the place of a region at `step`: its values, as they are estimated, and none of those
    that die in it."""
    estimated = estimates(region, kept, bases_of(values, region), step)
    for effect, value in zip(region.effects, estimated, strict=True):
        values[effect.live_out] = value
    for slot in region.dead_on_hit:
        values[slot] = None
