"""Conditioning by the name of its request: where a sample of a batch finds what it goes on with.

A sample is a row of what its caller put together. It goes on under its name with what says the
same, in whatever row of whatever tensor that lay, dead or alive.
"""

from collections.abc import Collection, Hashable

from dit_cachegraph.requests.conditioning import Conditioning, Content
from dit_cachegraph.requests.track import Track

MAX_ROWS = 1024


class ByName:
    """All conditioning that is of a request with a name; rows of batches, which nobody's death
    ends, least recently called first."""

    def __init__(self) -> None:
        self._of_key: dict[Hashable, dict[Conditioning[Track], None]] = {}
        self._rows: dict[Conditioning[Track], None] = {}

    def add(self, new: Conditioning[Track]) -> None:
        """It is found by its name from now on, if it has one."""
        if new.request_key is not None:
            self._of_key.setdefault(new.request_key, {})[new] = None

    def forget(self, conditioning: Conditioning[Track]) -> None:
        """It isn't found any more."""
        self._rows.pop(conditioning, None)
        named = self._of_key.get(conditioning.request_key, {})
        named.pop(conditioning, None)
        if not named:
            self._of_key.pop(conditioning.request_key, None)

    def of(self, request_key: Hashable | None) -> list[Conditioning[Track]]:
        """Those of one request, in the order of their entrance."""
        return list(self._of_key.get(request_key, ()))

    def equal(
        self, content: Content, besides: Collection[Conditioning[Track]]
    ) -> Conditioning[Track] | None:
        """What the request was called under that says the same, but for those `besides`."""
        own = (known for known in self.of(content.request_key) if known not in besides)
        return next((known for known in own if content.is_that_of(known.content)), None)

    def equal_row(self, content: Content) -> Conditioning[Track] | None:
        """The row of the request that says the same."""
        rows = (known for known in self.of(content.request_key) if known.is_row)
        return next((row for row in rows if content.is_that_of(row.content)), None)

    def rows(self) -> list[Conditioning[Track]]:
        """All rows."""
        return list(self._rows)

    def note_called(self, row: Conditioning[Track]) -> list[Conditioning[Track]]:
        """A row is called. Returns those that were given up, since so many were called after."""
        self._rows.pop(row, None)
        self._rows[row] = None
        return self.rows()[: max(0, len(self._rows) - MAX_ROWS)]
