"""What is held, counted as it changes: a step costs the same, however many images were given up and
wait to be forgotten."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dit_cachegraph.requests.conditioning import Conditioning
from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.latents import Objects
from dit_cachegraph.requests.track import HeldState, Track


class Freed(NamedTuple):
    """What was dropped: images under way, each pass of guidance by itself, and their bytes."""

    num_tracks: int
    nbytes: int


def total_of(freed: Iterable[Freed]) -> Freed:
    """All of it together."""
    return Freed(*map(sum, zip(*freed, strict=True))) if (freed := list(freed)) else Freed(0, 0)


class Held:
    """The tracks that hold something, least recently called first; `nbytes`, each storage once; and
    all tracks by the latents of their last call.

    Its `lock` may be entered again by its own thread: conditioning that dies meanwhile frees what
    was held under it. So a track's storages are taken out before they are counted off, and the
    table, whose turn that is, has no lock of its own.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._storages: dict[Track, dict[int, int]] = {}
        self._num_holders: Counter[int] = Counter()
        self._by_latents: dict[int, dict[Track, None]] = {}
        self.nbytes = 0

    def hold(self, track: Track, state: HeldState | None) -> None:
        """A track that was called holds `state` in place of what it held; nothing if it was removed
        in the meantime."""
        with self.lock:
            if state is not None and track.state is state:
                self._storages[track] = self._storages.pop(track)
                return
        found = () if state is None else (t.untyped_storage() for t in state.tensors())
        storages = {storage.data_ptr(): storage.nbytes() for storage in found}
        with self.lock:
            self._count_off(track)
            if track.is_removed:
                return
            for place, nbytes in storages.items():
                self._num_holders[place] += 1
                if self._num_holders[place] == 1:
                    self.nbytes += nbytes
            if state is not None:
                self._storages[track] = storages
            track.state = state

    def release(self, track: Track) -> int:
        """The track holds nothing any more. Returns the bytes that nobody holds now."""
        with self.lock:
            track.state = None
            return self._count_off(track)

    def note_called(self, track: Track, seconds: float) -> None:
        """Its request was called at `seconds`, if on another pass."""
        with self.lock:
            storages = self._storages.pop(track, None)
            if storages is not None:
                self._storages[track] = storages
                track.last_seconds = seconds

    def note_call(self, track: Track, call: Fingerprint) -> None:
        """What a track was called with last."""
        with self.lock:
            self._forget_call(track)
            track.last_call, place = call, call.latents.place
            if place is not None and not track.is_removed:
                self._by_latents.setdefault(place, {})[track] = None

    def called_with(self, latents: Objects) -> list[Track]:
        """The tracks whose last call took these very latents."""
        with self.lock:
            tracks = [] if latents.place is None else list(self._by_latents.get(latents.place, ()))
        calls = [(track, track.last_call) for track in tracks]
        return [t for t, call in calls if call is not None and latents.are_those_of(call.latents)]

    def under_this_step(self, latents: Objects) -> set[Conditioning[Track]]:
        """What the same step was called under already: with these latents, unwritten since."""
        called = [(track, track.last_call) for track in self.called_with(latents)]
        return {
            track.conditioning
            for track, call in called
            if call is not None and latents.are_unwritten_since(call.latents)
        }

    def remove(self, track: Track) -> int:
        """The track is over. Returns what `release` does."""
        with self.lock:
            self._forget_call(track)
            track.is_removed = True
            return self.release(track)

    def least_recent(self) -> Iterator[Track]:
        """Tracks from the one that was called the longest ago; each is to be released before the
        next is asked for."""
        while (track := self._first()) is not None:
            yield track

    def _first(self) -> Track | None:
        with self.lock:
            return next(iter(self._storages), None)

    def _forget_call(self, track: Track) -> None:
        place = None if track.last_call is None else track.last_call.latents.place
        if place is not None:
            tracks = self._by_latents.get(place, {})
            tracks.pop(track, None)
            if not tracks:
                self._by_latents.pop(place, None)

    def _count_off(self, track: Track) -> int:
        freed = 0
        for place, nbytes in self._storages.pop(track, {}).items():
            self._num_holders[place] -= 1
            if not self._num_holders[place]:
                del self._num_holders[place]
                freed += nbytes
        self.nbytes -= freed
        return freed
