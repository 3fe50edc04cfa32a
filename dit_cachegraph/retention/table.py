"""The tracks of one model, found by who is calling, and freed with the tensors of the caller.

Conditioning is told by the identity of its storages, held weakly. When one dies, so do the tracks
under it, with all that they hold, unless they wait for a call of equal content (`set_aside`). What
was written to says something else, most likely, and is treated as new objects.
"""

import itertools
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph.requests.conditioning import (
    BeginNumbers,
    Conditioning,
    Content,
    Namesakes,
    identity_of,
)
from dit_cachegraph.requests.latents import Objects
from dit_cachegraph.requests.schedule import Ends, Known
from dit_cachegraph.requests.track import Track
from dit_cachegraph.retention.by_name import ByName
from dit_cachegraph.retention.held import Freed, Held
from dit_cachegraph.retention.set_aside import SetAside, take

OVER = "its state was freed with the rest of its request"
REBUILT = "its conditioning was rebuilt, and its state went with the old one"


class CalledRow(NamedTuple):
    """The latents of a sample, and what begins to sum its conditioning (`ops.contents`)."""

    latents: Objects
    begin_content: BeginNumbers


class RequestTable:
    """`known` is what the model's images showed of its schedules, `ends` where those ended. Tracks
    that lost their state are counted: `num_evicted` to a bound on bytes, `num_expired` to time."""

    def __init__(self) -> None:
        self.known = Known()
        self.ends = Ends()
        self.held = Held()
        self.num_evicted = 0
        self.num_expired = 0
        self._alive: dict[Hashable, Conditioning[Track]] = {}
        self._named: dict[Hashable, Namesakes[Track]] = {}
        self.set_aside = SetAside()
        self._by_name = ByName()
        self._labels = itertools.count(1)
        self._numbers = itertools.count(1)

    def find(
        self,
        request_key: Hashable | None,
        tensors: Sequence[Tensor],
        versions: tuple[int, ...] | None = None,
    ) -> Conditioning[Track]:
        """That of a call, with its tracks; a new one without any if it isn't known. `versions`
        count the writes to its tensors, None where nobody counts them."""
        identity = identity_of(request_key, tensors)
        found = self._alive.get(identity)
        if found is None or found.versions != versions:
            content = Content(request_key, tensors)
            if found is not None and not content.is_that_of(found.content):
                self.forget(found, ends_request=found.num_calls > 1)
                found = None
            if found is None:
                new = Conditioning[Track](request_key, identity, versions, content)
                before = self._take_over(content)
                found = self._enter(new, before, tensors)
            found.versions = versions
        found.num_calls += 1
        return found

    def find_row(
        self,
        request_key: Hashable,
        tensors: Sequence[Tensor],
        versions: tuple[int, ...] | None,
        row: CalledRow,
    ) -> Conditioning[Track]:
        """That of a sample of a batch, whose `tensors` are rows. What was called with the very same
        latents is another pass of guidance, whatever it says."""
        identity = identity_of(request_key, tensors)
        found = self._alive.get(identity)
        if found is None or not found.is_row or found.versions != versions:
            content = Content(request_key, tensors, row.begin_content)
            others = self.held.under_this_step(row.latents)
            before = self._by_name.equal(content, besides=others)
            for left in (found, before):
                if left is not None:
                    self.set_aside.take(left)
                    self._leave(left)
            new = Conditioning[Track](request_key, identity, versions, content, is_row=True)
            found = self._enter(new, before, tensors)
        found.num_calls += 1
        for given_up in self._by_name.note_called(found):
            self.end(given_up)
        return found

    def _enter(
        self,
        new: Conditioning[Track],
        before: Conditioning[Track] | None,
        tensors: Sequence[Tensor],
    ) -> Conditioning[Track]:
        """New conditioning, with the tracks of one before that says the same."""
        storages = [tensor.untyped_storage() for tensor in tensors]
        named = f"#{next(self._labels)}" if new.request_key is None else str(new.request_key)
        new.label = named if before is None else before.label
        if before is not None:
            new.tracks, before.tracks = before.tracks, []
            new.lasting = before.shares(storages)
            for track in new.tracks:
                track.conditioning = new
            self._by_name.forget(before)
        # A storage's Python object lives exactly as long as the storage (torch 2.1 on), so this
        # also holds for views that are made anew at every call.
        new.storages = tuple(
            weakref.ref(storage, _forgetter(weakref.ref(self), new, i))
            for i, storage in enumerate(storages)
        )
        known = self._alive.setdefault(new.identity, new)
        if known is new:
            self._by_name.add(new)
        if known is new and new.request_key is not None and not new.is_row:
            with self.held.lock:
                new.namesakes = self._named.setdefault(new.identity[1:], Namesakes())
                new.namesakes.members[new] = None
        return known

    def _take_over(self, content: Content) -> Conditioning[Track] | None:
        """What was set aside with this content, or a row that has it; of several, the one whose
        last call is the longest ago."""
        row = self._by_name.equal_row(content)
        if row is not None:
            self._leave(row)
            return row
        return self.set_aside.take_equal(content)

    def end(self, conditioning: Conditioning[Track]) -> None:
        """The request is over."""
        self._leave(conditioning)
        self._drop(conditioning)

    def _leave(self, conditioning: Conditioning[Track]) -> None:
        """It isn't found by its objects any more."""
        if self._alive.get(conditioning.identity) is conditioning:
            self._alive.pop(conditioning.identity, None)
        with self.held.lock:
            named, conditioning.namesakes = conditioning.namesakes, None
            if named is not None:
                named.forget(conditioning)
                if not named.members:
                    self._named.pop(conditioning.identity[1:], None)

    def forget(self, conditioning: Conditioning[Track], *, ends_request: bool) -> None:
        """One of its objects is gone, or says something else."""
        if conditioning.is_row:
            self._leave(conditioning)
            return
        if self._alive.get(conditioning.identity) is conditioning:
            self._leave(conditioning)
            if ends_request:
                self._drop(conditioning)
                return
            if not self.set_aside.is_rebuilt:
                self._free(conditioning, REBUILT)
            for oldest in self.set_aside.add(conditioning):
                self._drop(oldest)
        elif ends_request and self.set_aside.take(conditioning):
            self._drop(conditioning)
        if conditioning.is_gone and not self.set_aside.is_rebuilt_wholly:
            self._free(conditioning, REBUILT)

    def _drop(self, conditioning: Conditioning[Track]) -> None:
        """The request is over."""
        conditioning.is_over = True
        self._by_name.forget(conditioning)
        self._free(conditioning, OVER)
        self.remove_all(conditioning)

    def remove_all(self, conditioning: Conditioning[Track]) -> None:
        """The images under it are over."""
        for track in list(conditioning.tracks):
            self.remove(track)

    def remove(self, track: Track) -> None:
        """The image is over."""
        track.log_image()
        self.ends.learn(track.trajectory)
        self.held.remove(track)
        if track.conditioning.namesakes is not None:
            track.conditioning.namesakes.recent.pop(track, None)
        take(track.passes, track)
        track.passes = [track]
        take(track.conditioning.tracks, track)

    def free(self, track: Track, why: str) -> None:
        """Free its tensors, and go on knowing which step comes next."""
        if track.state is not None:
            self.held.release(track)
            track.lost = why
            self.note_held(track.conditioning)

    def free_all(self, why: str) -> None:
        """Free the tensors of all that is under way."""
        for conditioning in list(self._alive.values()):
            for track in list(conditioning.tracks):
                self.free(track, why)

    def note_held(self, conditioning: Conditioning[Track]) -> None:
        """What is held under it changed."""
        with self.held.lock:
            named, tracks = conditioning.namesakes, conditioning.tracks
            if named is None:
                return
            is_idle = all(track.state is None for track in tracks)
            is_over = all(track.is_complete for track in tracks)
            left = named.note_held(conditioning, is_idle=is_idle, is_over=is_over)
        for other in left:
            self.end(other)

    def _free(self, conditioning: Conditioning[Track], why: str) -> None:
        """Free the tensors of its tracks, and of what their requests have under conditioning that
        they share with others, except where that went on without this one: where guidance ends
        half-way."""
        for track in list(conditioning.tracks):
            self.free(track, why)
            for companion in track.companions:
                if companion.trajectory.num_calls <= track.trajectory.num_calls:
                    self.free(companion, OVER)

    def drop(self, request_key: Hashable | None = None) -> Freed:
        """Drop what one request keeps, or all of them, and then where images were seen to end too:
        one that was given up near its end looked whole."""
        num_tracks, nbytes = 0, 0
        known = [*self._alive.values(), *self.set_aside, *self._by_name.rows()]
        for conditioning in dict.fromkeys(known):
            if request_key is None or conditioning.request_key == request_key:
                tracks = list(conditioning.tracks)
                num_tracks += len(tracks)
                nbytes += sum(map(self.held.release, tracks))
                self.set_aside.take(conditioning)
                self.end(conditioning)
        if request_key is None:
            self.ends = Ends()
        return Freed(num_tracks, nbytes)

    def next_number(self) -> int:
        """A number for a call, larger than all before."""
        return next(self._numbers)

    def __len__(self) -> int:
        return len(self._alive)


def _forgetter(
    table: "weakref.ref[RequestTable]", conditioning: Conditioning[Track], index: int
) -> Callable[["weakref.ref[torch.UntypedStorage]"], None]:
    known = weakref.ref(conditioning)

    def forget(_: "weakref.ref[torch.UntypedStorage]") -> None:
        alive, dying = table(), known()
        if alive is not None and dying is not None:
            alive.forget(dying, ends_request=dying.ends_with(index))

    return forget
