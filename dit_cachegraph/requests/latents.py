"""Continuity: are these the latents that an image goes on with?

A step reads a small sample of its latents, 256 numbers of each picture of a batch, in the same copy
as the diff. From step to step of one image they move little, and two images have noise of their
own. A batch is as near as the picture that moved most: one that was put in the place of another
shows, whatever the rest does.

    two steps of one image, an ODE           0.9 and more, 0.7 or so at 4 steps in all
    the same, a sampler that adds noise      0.4 and more; 0 after a first step at zero SNR
    steps of two images                      0

What stands still for ever (the picture that an edit starts from, beside the latents in one tensor)
says nothing, so only the elements that changed are compared.
"""

import math
import operator
import weakref
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit_cachegraph.ops import LATENTS_SAMPLE_SIZE

LatentsSample = npt.NDArray[np.float32]

MIN_CORRELATION = 0.25  # Of 256 independent pairs the correlation is 0 +- 0.06.
# Steps of a sampler that adds nearly all noise anew are on either side of that bound. From here on
# they are not, and neither are those of other images.
SURELY_NEAR = 0.5
MIN_CHANGED = 8
CLEARLY_NEARER = 0.5


def closeness(now: LatentsSample | None, before: LatentsSample | None) -> float | None:
    """The correlation of two samples over the elements that changed, of a batch the smallest; 1
    where next to nothing did, 0 where one side is constant and the other isn't, None where there is
    nothing to compare or it isn't finite."""
    if now is None or before is None:
        return None
    if now.shape != before.shape:
        return 0.0
    num_each = LATENTS_SAMPLE_SIZE
    if len(now) <= num_each:
        return _closeness(now, before)
    pairs = zip(now.reshape(-1, num_each), before.reshape(-1, num_each), strict=True)
    found = [_closeness(*pair) for pair in pairs]
    known = [close for close in found if close is not None]
    return min(known) if len(known) == len(found) else None


def _closeness(now: LatentsSample, before: LatentsSample) -> float | None:
    changed = now != before
    num_changed = int(np.count_nonzero(changed))
    if num_changed < MIN_CHANGED:
        return 1.0 if np.isfinite(now).all() else None
    if num_changed < len(now):
        now, before = now[changed], before[changed]
    return _correlation(now, before, num_changed)


def _correlation(a: LatentsSample, b: LatentsSample, count: int) -> float | None:
    if not (math.isfinite(a.dot(a)) and math.isfinite(b.dot(b))):
        return None
    a = a - np.add.reduce(a) / count
    b = b - np.add.reduce(b) / count
    spread_a, spread_b, joint = float(a.dot(a)), float(b.dot(b)), float(a.dot(b))
    if spread_a == 0.0 or spread_b == 0.0:
        # A picture beside the latents in one pass of guidance, and zeros in its place in another.
        return 1.0 if spread_a == spread_b else 0.0
    result = joint / (spread_a * spread_b) ** 0.5
    return result if math.isfinite(result) else None


def is_clearly_nearer(close: float, other: float) -> bool:
    """True if `close` speaks for its image, with `other` in mind."""
    return 1.0 - close < CLEARLY_NEARER * (1.0 - other)


def is_same(now: LatentsSample | None, before: LatentsSample | None) -> bool:
    """True if the samples are equal to the last bit."""
    return now is not None and before is not None and np.array_equal(now, before)


class Objects(NamedTuple):
    """The tensors that a call took, as latents or for an injected residual, and how often each was
    written to: None where nobody counts that. The passes of guidance share their latents within a
    step. `place` is the same for the same objects, None where there are none."""

    storages: tuple["weakref.ref[torch.UntypedStorage]", ...]
    places: tuple[Hashable, ...]
    versions: tuple[int, ...] | None
    place: int | None

    def are_those_of(self, other: "Objects") -> bool:
        """True for the very same objects, if there are any."""
        if self.places != other.places or not self.places:
            return False
        mine = [storage() for storage in self.storages]
        others = [storage() for storage in other.storages]
        return None not in mine and all(map(operator.is_, mine, others))

    def are_unwritten_since(self, other: "Objects") -> bool:
        """True for the very same objects, which nobody is known to have written to."""
        is_counted = self.versions is not None and self.versions == other.versions
        return is_counted and self.are_those_of(other)


def objects_of(values: Sequence[object]) -> Objects:
    """What a call took. Of its latents that is all of them, since one may stand still for ever."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    places = tuple([place_of(tensor) for tensor in tensors])
    place = id(storages[0]) if storages else None
    return Objects(tuple(map(weakref.ref, storages)), places, versions_of(tensors), place)


def place_of(tensor: Tensor) -> Hashable:
    """Equal for what reads the same elements of a storage, in the same way."""
    is_strided = tensor.layout is torch.strided
    return (
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride() if is_strided else tensor.layout,
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def versions_of(values: Sequence[object]) -> tuple[int, ...] | None:
    """How often each tensor was written to; None under `torch.inference_mode`, where nobody counts
    that."""
    try:
        return tuple([value._version for value in values if isinstance(value, Tensor)])
    except RuntimeError:  # So it says of an inference tensor.
        return None
