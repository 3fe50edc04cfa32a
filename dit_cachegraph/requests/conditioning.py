"""What a call was given beside latents and timestep: its text, its masks, its positions.

identity   their storages, and what they read of them: the very same objects, or slices of them made
           anew
versions   how often they were written to
content    sums over their elements, for callers that rebuild or write their conditioning at every
           call
"""

import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.requests.latents import place_of

T = TypeVar("T")
MAX_IDLE, MAX_ENDED = 1024, 8  # Requests by name of which nothing is held, under the same objects.


def identity_of(request_key: Hashable | None, tensors: Sequence[Tensor]) -> tuple[Hashable, ...]:
    """Equal for the very same objects, good while their storages live. Its first entry is the
    request's key."""
    return (request_key, *[(id(t.untyped_storage()), place_of(t)) for t in tensors])


Numbers = Callable[[], Sequence[float]]
BeginNumbers = Callable[[], Numbers]


class Content:
    """What conditioning says: two sums over each tensor, float64, left on its device until they are
    compared, so that a request whose conditioning lives on waits for nothing. `begin` begins to
    sum, where that is done with those of others, and returns what reads the sums."""

    def __init__(
        self,
        request_key: Hashable | None,
        tensors: Sequence[Tensor],
        begin: BeginNumbers | None = None,
    ) -> None:
        self.request_key = request_key
        parts = ops.plain_parts(tensors)
        self._kind = (request_key, [(part.shape, part.dtype) for part in parts])
        self._read = _begun(parts) if begin is None else begin()
        self._numbers: tuple[float, ...] | None = None

    def is_that_of(self, other: "Content") -> bool:
        """True for equal tensors of one request, or of callers without a name; NaN equals nothing.
        Reads the sums of either, once."""
        return self._kind == other._kind and self.numbers() == other.numbers() != ()

    def numbers(self) -> tuple[float, ...]:
        """The sums, in one copy to the host; none where they aren't finite."""
        if self._numbers is None:
            read = self._read()
            self._numbers = tuple(read) if all(map(math.isfinite, read)) else ()
        return self._numbers


def _begun(tensors: Sequence[Tensor]) -> Numbers:
    sums = [ops.content(tensor) for tensor in tensors]
    return lambda: [number for pair in ops.HostCopy(sums).read() for number in pair.tolist()]


@dataclass(eq=False)
class Conditioning(Generic[T]):
    """Some conditioning that calls were made under, and the `tracks` that are under way with it.

    `num_calls` counts those with these very objects. `lasting` are the objects, by index, that an
    earlier conditioning of the same content had too: of a caller who rebuilds a part of it at every
    call, they are what lives as long as the request. `caller` is what named it at its last
    call, for as long as somebody has that. Once it `is_over` nothing is held under it, whatever
    call is still under way. It `is_row` of a batch if the last call had it among others: then its
    objects are what the caller put together for that call, and their death says nothing.
    """

    request_key: Hashable | None
    identity: tuple[Hashable, ...]
    versions: tuple[int, ...] | None
    content: Content
    label: str = ""
    tracks: list[T] = field(default_factory=list)
    num_calls: int = 0
    storages: tuple["weakref.ref[torch.UntypedStorage]", ...] = ()
    lasting: frozenset[int] = frozenset()
    is_over: bool = False
    is_row: bool = False
    caller: "weakref.ref[object] | None" = None
    namesakes: "Namesakes[T] | None" = None

    def ends_with(self, index: int) -> bool:
        """True if the death of one of its objects ends the request, and isn't that of something
        which the caller rebuilds."""
        return self.num_calls > 1 or index in self.lasting

    @property
    def may_go_on(self) -> bool:
        """True if somebody has a handle of it still."""
        return self.caller is not None and self.caller() is not None

    @property
    def is_gone(self) -> bool:
        """True if all of its objects are dead."""
        return all(storage() is None for storage in self.storages)

    def shares(self, storages: Sequence[torch.UntypedStorage]) -> frozenset[int]:
        """Which of these storages are of its own objects, by index."""
        own = [storage() for storage in self.storages]
        return frozenset(i for i, s in enumerate(storages) if any(s is other for other in own))


class Namesakes(Generic[T]):
    """The requests by name under the very same objects: of a server that gives each image a key
    under a prompt that lives on. `recent` are the tracks that were called since they were last
    looked at; `idle` is what holds nothing, that for longest first, and `ended` what is over."""

    def __init__(self) -> None:
        self.members: dict[Conditioning[T], None] = {}
        self.recent: dict[T, None] = {}
        self.idle: dict[Conditioning[T], None] = {}
        self.ended: dict[Conditioning[T], None] = {}
        self._begun: list[tuple[Hashable, int]] = []

    def forget(self, conditioning: Conditioning[T]) -> None:
        """That request is over."""
        for own in (self.members, self.idle, self.ended):
            own.pop(conditioning, None)
        for track in conditioning.tracks:
            self.recent.pop(track, None)

    def note_held(
        self, conditioning: Conditioning[T], *, is_idle: bool, is_over: bool
    ) -> list[Conditioning[T]]:
        """It holds nothing if it `is_idle`. Returns those like it that did so the longest ago and
        are too many: requests that were given up would stay for ever."""
        self.idle.pop(conditioning, None)
        self.ended.pop(conditioning, None)
        if not is_idle:
            return []
        place, most = (self.ended, MAX_ENDED) if is_over else (self.idle, MAX_IDLE)
        place[conditioning] = None
        return list(place)[: max(0, len(place) - most)]

    def begin(self, request_key: Hashable, number: int) -> int:
        """An image of this name begins with call `number`. Returns that with which the last one by
        another name began, 0 if none did."""
        others = [(key, begun) for key, begun in self._begun if key != request_key][-1:]
        self._begun = [*others, (request_key, number)]
        return others[0][1] if others else 0
