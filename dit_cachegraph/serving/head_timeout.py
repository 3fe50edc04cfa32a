"""How long a client may take to send the head of a request.

uvicorn waits for it for ever, and each connection counts: a few hundred that say nothing, and all
others are told 503.

    connected | a head begins | it is there                  closed where that takes too long
    an answer is sent | (uvicorn's own timeout) | a head begins | ...
"""

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class _TimedHeads(H11Protocol):
    head_seconds: ClassVar[float]
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def timed_heads(seconds: float) -> type[asyncio.Protocol]:
    """What uvicorn speaks HTTP with: a connection on which the head of a request takes longer is
    closed."""
    return type("TimedHeads", (_TimedHeads,), {"head_seconds": seconds})
