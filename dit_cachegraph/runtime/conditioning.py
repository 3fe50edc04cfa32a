"""Who a call belongs to, read off the tensors that are neither latents nor timestep.

identity   their storages, offsets and shapes: the very same objects, or slices of them made anew
versions   how often they were written to
content    sums over their elements, for callers that rebuild or write their conditioning at every
           call
"""

import math
import weakref
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph import ops


def identity_of(
    request_key: Hashable | None, conditioning: Sequence[object]
) -> tuple[tuple[Hashable, ...], list[torch.UntypedStorage]]:
    """A key for the conditioning objects of a call, good while their storages live; and these. Its
    first entry is that of the request."""
    storages: list[torch.UntypedStorage] = []
    parts: list[Hashable] = []
    for value in conditioning:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages.append(storage)
            parts.append((id(storage), value.storage_offset(), value.shape))
    return (request_key, *parts), storages


class Content:
    """What conditioning says: sums over each tensor, left on its device until they are compared, so
    that a request whose conditioning lives on waits for nothing."""

    def __init__(self, request_key: Hashable | None, conditioning: Sequence[object]) -> None:
        tensors = [value for value in conditioning if isinstance(value, Tensor)]
        self._kind = (request_key, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        self._sums = [ops.content(tensor) for tensor in tensors]
        self._numbers: tuple[float, ...] | None = None

    def is_that_of(self, other: "Content") -> bool:
        """True for equal tensors of one request, or of callers without a name; NaN equals nothing.
        Reads the sums of either, once."""
        return self._kind == other._kind and self.numbers() == other.numbers() != ()

    def numbers(self) -> tuple[float, ...]:
        """The sums, in one copy to the host for each device; none where they aren't finite."""
        if self._numbers is None:
            by_device: dict[torch.device, list[Tensor]] = {}
            for sums in self._sums:
                by_device.setdefault(sums.device, []).append(sums)
            read = [n for s in by_device.values() for n in ops.to_host(torch.cat(s)).tolist()]
            self._numbers = tuple(read) if all(map(math.isfinite, read)) else ()
        return self._numbers


class LatentsIdentity(NamedTuple):
    """The objects that a call took, as latents or for a control. The passes of guidance share
    their latents within a step."""

    storages: tuple["weakref.ref[torch.UntypedStorage]", ...]
    places: tuple[tuple[int | torch.SymInt, torch.Size], ...]

    def is_that_of(self, other: "LatentsIdentity | None") -> bool:
        if other is None or self.places != other.places:
            return False
        mine = [storage() for storage in self.storages]
        others = [storage() for storage in other.storages]
        pairs = zip(mine, others, strict=True)
        return all(a is b and a is not None for a, b in pairs)


def latents_identity(latents: Sequence[object]) -> LatentsIdentity | None:
    """The objects that a call took as latents: all of them, since one may stand still for ever."""
    tensors = [value for value in latents if isinstance(value, Tensor)]
    if not tensors:
        return None
    storages = tuple(weakref.ref(tensor.untyped_storage()) for tensor in tensors)
    return LatentsIdentity(storages, tuple((t.storage_offset(), t.shape) for t in tensors))


class Given(NamedTuple):
    """The objects that a caller gave for a control, and how often each was written to: None where
    nobody counts that (under `torch.inference_mode`)."""

    objects: LatentsIdentity | None
    versions: tuple[int, ...] | None

    def is_that_of(self, other: "Given") -> bool:
        """True for the very same objects, unwritten since."""
        if self.objects is None or self.versions is None or self.versions != other.versions:
            return False
        return self.objects.is_that_of(other.objects)


def given_by(values: Sequence[object]) -> Given:
    """What was given for a control, as it is now."""
    return Given(latents_identity(values), versions_of(values))


def versions_of(values: Sequence[object]) -> tuple[int, ...] | None:
    """How often each tensor was written to; None under `torch.inference_mode`, where nobody counts
    that."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple([tensor._version for tensor in tensors])
