"""All branches of one model, found by who is calling, and freed with the tensors of the caller.

Conditioning is told by the identity of its storages. They are held weakly; when one dies, so does
the branch with all that it keeps. A branch that dies after a single call may belong to a caller who
rebuilds the conditioning at every call. Such an orphan is known again by its content, and from the
first time that this happens orphans keep their tensors.

    call 1 (text A)   a branch; text A dies: an orphan
    call 2 (text A')  of equal content: the orphan goes on under the new objects

A tensor that was written to says something else, most likely, and is treated as a new object.
"""

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import torch

from dit_cachegraph.runtime.cache_state import Branch, Image, Rebuilt
from dit_cachegraph.runtime.conditioning import Content, LatentsIdentity, identity_of

T = TypeVar("T")
MAX_ORPHANS = 32
MAX_NAMED = 32  # Requests by name at once under the very same conditioning.
OVER = "its state was freed with the rest of its request"
REBUILT = "its conditioning was rebuilt, and its state went with the old one"


class BranchTable:
    """The branches of one model. `on_forget` is called with each image that goes."""

    def __init__(self, on_forget: Callable[[Image], None]) -> None:
        self._on_forget = on_forget
        self._branches: dict[Hashable, Branch] = {}
        self._orphans: list[Branch] = []
        self._seen_rebuilt: set[Rebuilt] = set()
        self._labels = itertools.count(1)
        self._calls = itertools.count(1)

    def find(
        self,
        request_key: Hashable | None,
        conditioning: Sequence[object],
        versions: tuple[int, ...] | None = None,
    ) -> Branch:
        """The branch of a call; a new one if there is none yet. `versions` count the writes to its
        conditioning."""
        identity, storages = identity_of(request_key, conditioning)
        branch = self._branches.get(identity)
        if branch is None or branch.versions != versions:
            content = Content(request_key, conditioning)
            if branch is not None and not content.is_that_of(branch.content):
                self.forget(branch)
                branch = None
            branch = branch or self._enter(identity, storages, content)
            branch.versions = versions
        branch.num_uses += 1
        return branch

    def _enter(
        self,
        identity: tuple[Hashable, ...],
        storages: Sequence[torch.UntypedStorage],
        content: Content,
    ) -> Branch:
        """A branch for conditioning that is new, or that an orphan knows."""
        branch = self._adopt(content) or self._new(identity[0], content)
        branch.identity, branch.num_uses = identity, 0
        forget = _forgetter(weakref.ref(self), branch)
        # A storage's Python object lives exactly as long as the storage (torch 2.1 on), so this
        # also holds for views that are made anew at every call.
        branch.storages = tuple(weakref.ref(storage, forget) for storage in storages)
        branch = self._branches.setdefault(identity, branch)
        self._bound(branch)
        return branch

    def namesakes(self, branch: Branch) -> list[Branch]:
        """The branches of other named requests under the very same conditioning."""
        if branch.request_key is None:
            return []
        return [
            other
            for other in list(self._branches.values())
            if other is not branch
            and other.request_key is not None
            and other.identity[1:] == branch.identity[1:]
        ]

    def _bound(self, branch: Branch) -> None:
        """A key for each image, and conditioning that lives on: those that were aborted would stay
        for ever."""
        others = sorted(self.namesakes(branch), key=lambda other: other.last_call)
        for other in others[: max(0, len(others) + 1 - MAX_NAMED)]:
            self.end(other)

    def end(self, branch: Branch) -> None:
        """The request of this branch is over."""
        self._branches.pop(branch.identity, None)
        self._drop(branch)

    def _new(self, request_key: Hashable | None, content: Content) -> Branch:
        label = f"#{next(self._labels)}" if request_key is None else str(request_key)
        return Branch(label, request_key, content)

    def _adopt(self, content: Content) -> Branch | None:
        """The orphan of this content; of several, the one whose last call is the longest ago."""
        for branch in list(self._orphans):
            # Another thread may have adopted it since.
            if content.is_that_of(branch.content) and _take(self._orphans, branch):
                branch.adopted_from = branch.storages
                return branch
        return None

    def note_rebuilt(self, branch: Branch) -> None:
        """An image went on under conditioning of equal content: its caller rebuilds it."""
        is_any_alive = any(storage() is not None for storage in branch.adopted_from)
        branch.rebuilt = Rebuilt.PARTLY if is_any_alive else Rebuilt.WHOLLY
        self._seen_rebuilt.add(branch.rebuilt)

    def forget(self, branch: Branch) -> None:
        """One of the storages of a branch's conditioning is gone, or says something else."""
        if branch in self._orphans:
            self._forget_orphan(branch)
        elif self._branches.get(branch.identity) is branch:
            self._branches.pop(branch.identity, None)
            if branch.num_uses <= 1:
                self._set_aside(branch)
            else:
                self._drop(branch)

    def _set_aside(self, branch: Branch) -> None:
        if not self._seen_rebuilt:
            _strip(branch, REBUILT)
        self._orphans.append(branch)
        while len(self._orphans) > MAX_ORPHANS:
            self._drop(self._orphans.pop(0))
        self._forget_orphan(branch)

    def _forget_orphan(self, branch: Branch) -> None:
        """Where a caller rebuilds a part of the conditioning, the rest says when a request ends."""
        if any(storage() is not None for storage in branch.storages):
            return
        if branch.rebuilt is Rebuilt.PARTLY:
            _take(self._orphans, branch)
            self._drop(branch)
        elif branch.rebuilt is Rebuilt.NEVER and Rebuilt.WHOLLY not in self._seen_rebuilt:
            _strip(branch, REBUILT)

    def _drop(self, branch: Branch) -> None:
        """The request is over."""
        _strip(branch, OVER)
        for image in list(branch.images):
            self.remove(image)

    def remove(self, image: Image) -> None:
        """The image is over."""
        self._on_forget(image)
        image.strip(OVER)
        for companion in image.companions:
            _take(companion.companions, image)
        image.companions.clear()
        _take(image.branch.images, image)

    def drop(self, request_key: Hashable | None = None) -> None:
        """Drop the branches of one request, or all of them."""
        for branch in [*self._branches.values(), *self._orphans]:
            if request_key is None or branch.request_key == request_key:
                self._branches.pop(branch.identity, None)
                _take(self._orphans, branch)
                self._drop(branch)

    def images(self) -> Iterator[Image]:
        """Every image under way."""
        for branch in [*self._branches.values(), *self._orphans]:
            yield from list(branch.images)

    def called_with(self, latents: LatentsIdentity | None) -> Iterator[Image]:
        """The images whose last call took this very latents object."""
        if latents is not None:
            yield from (image for image in self.images() if latents.is_that_of(image.latents))

    def next_call(self) -> int:
        """A number for a call, larger than all before."""
        return next(self._calls)

    @property
    def nbytes(self) -> int:
        """Bytes of all state held, each storage once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for image in self.images()
            if (kept := image.kept) is not None
            for tensor in kept.tensors()
        }
        return sum(storages.values())

    def __len__(self) -> int:
        return len(self._branches)


def _take(items: list[T], item: T) -> bool:
    """Remove an item that may be gone: True for the one thread that got it."""
    try:
        items.remove(item)
    except ValueError:
        return False
    return True


def _strip(branch: Branch, why: str) -> None:
    """Free the tensors of a branch, and of what its request has on branches that it shares with
    others, except where that went on without this one: where guidance ends half-way."""
    for image in list(branch.images):
        image.strip(why)
        for companion in list(image.companions):
            if companion.trajectory.num_calls <= image.trajectory.num_calls:
                companion.strip(OVER)


def _forgetter(
    table: "weakref.ref[BranchTable]", branch: Branch
) -> Callable[["weakref.ref[torch.UntypedStorage]"], None]:
    known = weakref.ref(branch)

    def forget(_: "weakref.ref[torch.UntypedStorage]") -> None:
        alive, dying = table(), known()
        if alive is not None and dying is not None:
            alive.forget(dying)

    return forget
