"""What enters a region from outside beside its streams: a replay has its old effect in it.

the very objects of the last computed step, unwritten    nothing is done
others                                                   samples of their values are compared with
                                                         those that step used, in the one copy that
                                                         a step makes anyway
moved by `BOUND` or more                                 nothing that is kept is of use: it computes
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.planning.region import Region
from dit_cachegraph.requests.latents import objects_of
from dit_cachegraph.runtime.cached_state import CachedState, InjectedSample
from dit_cachegraph.segments.slots import Values, tensor_at

BOUND = 0.4
"""Relative L1. A jump by half has to show, also after rounding; a ControlNet's own drift over a run
of hits must not, since that goes with what the rule itself compares."""


class Injected(NamedTuple):
    """What enters the regions of one call, by slot."""

    regions: tuple[Region, ...]
    by_slot: dict[int, InjectedSample]

    def of(self, region: Region) -> tuple[InjectedSample, ...]:
        """What later steps have to know of what enters a region that computes now."""
        return tuple([self.by_slot[residual.slot] for residual in region.injected])

    def moved(self, kept: CachedState | None) -> Tensor | None:
        """`sum|c - k|` and `sum|k|` in turn, of each sample of each control that isn't the very
        object which its region last computed with; None where all of them are."""
        if not self.by_slot:
            return None
        groups: defaultdict[object, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        # Several regions may have read one control.
        for slot, before in {(s, id(b)): (s, b) for s, b in _pairs(self.regions, kept)}.values():
            sources, sample = self.by_slot[slot]
            if sample.shape == before.sample.shape and not sources.are_unwritten_since(
                before.sources
            ):
                key = (sample.shape, sample.dtype, before.sample.dtype)
                groups[key].append((sample, before.sample))
        sums = [ops.distances(*zip(*pairs, strict=True)) for pairs in groups.values()]
        return torch.cat([each.reshape(-1) for each in sums]) if sums else None

    def why_of_no_use(self, kept: CachedState, sums: Sequence[float]) -> str | None:
        """Why a step can't use what is kept: what is said of the control that moved most."""
        if not self.by_slot:
            return None
        if not self._fits(kept):
            return "new shape"
        changes = [_change(*pair) for pair in zip(sums[0::2], sums[1::2], strict=True)]
        if any(math.isnan(change) for change in changes):
            return "a control is not finite"
        largest = max(changes, default=0.0)
        if largest < BOUND:
            return None
        return f"a control changed by {largest:.0%}" if largest < math.inf else "a control began"

    def _fits(self, kept: CachedState) -> bool:
        """True if what enters has the shapes of what is kept. Something may have the shape of a
        stream at one size and not at another."""
        pairs = list(_pairs(self.regions, kept))
        computed = [r for r, of in zip(self.regions, kept.regions, strict=True) if of is not None]
        shapes = [(self.by_slot[slot].sample.shape, before.sample.shape) for slot, before in pairs]
        is_whole = len(pairs) == sum(len(region.injected) for region in computed)
        return is_whole and all(now == then for now, then in shapes)


def injected_now(
    values: Values, regions: tuple[Region, ...], kept: CachedState | None, batch_dim: int | None
) -> Injected:
    """What enters the regions now; where it is what `kept` knows, just that."""
    found: dict[int, InjectedSample] = {}
    known: defaultdict[int, list[InjectedSample]] = defaultdict(list)
    for slot, before in _pairs(regions, kept):
        known[slot].append(before)
    for slot, arguments in {r.slot: r.sources for of in regions for r in of.injected}.items():
        sources = objects_of([values[i] for i in arguments])
        same = next((b for b in known[slot] if sources.are_unwritten_since(b.sources)), None)
        found[slot] = same or InjectedSample(
            sources, ops.sampled(tensor_at(values, slot), batch_dim)
        )
    return Injected(regions, found)


def _pairs(
    regions: Sequence[Region], kept: CachedState | None
) -> Iterator[tuple[int, InjectedSample]]:
    """Each control of each region by its slot, with what the region last computed with."""
    if kept is None:
        return
    for region, of_region in zip(regions, kept.regions, strict=True):
        if of_region is not None and len(of_region.injected) == len(region.injected):
            for residual, before in zip(region.injected, of_region.injected, strict=True):
                yield residual.slot, before


def _change(moved: float, size: float) -> float:
    """A control that stays zero has not moved."""
    if not (math.isfinite(moved) and math.isfinite(size)):
        return math.nan
    return 0.0 if moved == 0 else moved / size if size > 0 else math.inf
