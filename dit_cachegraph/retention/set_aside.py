"""Conditioning that died after a single call: it may belong to a caller who rebuilds it at each.

call 1 (text A)   a track; text A dies: set aside
call 2 (text A')  of equal content: the track goes on under the new objects
"""

from collections.abc import Iterator
from typing import TypeVar

from dit_cachegraph.requests.conditioning import Conditioning, Content
from dit_cachegraph.requests.track import Track

T = TypeVar("T")
MAX_SET_ASIDE = 32


class SetAside:
    """What waits for a call of its content, the oldest first. Whether callers of the model rebuild
    their conditioning is learned, and whether all of it: until then what is set aside keeps its
    step, and not its tensors."""

    def __init__(self) -> None:
        self.is_rebuilt = False
        self.is_rebuilt_wholly = False
        self._waiting: list[Conditioning[Track]] = []

    def __iter__(self) -> Iterator[Conditioning[Track]]:
        return iter(list(self._waiting))

    def add(self, conditioning: Conditioning[Track]) -> list[Conditioning[Track]]:
        """It waits from now on. Returns those that made room for it."""
        self._waiting.append(conditioning)
        num_over = max(0, len(self._waiting) - MAX_SET_ASIDE)
        return [oldest for oldest in list(self._waiting)[:num_over] if self.take(oldest)]

    def take(self, conditioning: Conditioning[Track]) -> bool:
        """It waits no more. False if it didn't, or another thread has it."""
        return take(self._waiting, conditioning)

    def take_equal(self, content: Content) -> Conditioning[Track] | None:
        """What has this content; of several, what was called the longest ago."""
        equal = (before for before in self if content.is_that_of(before.content))
        return next((before for before in equal if self.take(before)), None)

    def note_goes_on(self, conditioning: Conditioning[Track]) -> None:
        """A track went on. If that is the first call with these objects, its caller rebuilds
        them."""
        if conditioning.num_calls == 1:
            self.is_rebuilt = True
            self.is_rebuilt_wholly |= not conditioning.lasting


def take(items: list[T], item: T) -> bool:
    """Remove an item that may be gone: True for the one thread that got it."""
    try:
        items.remove(item)
    except ValueError:
        return False
    return True
