"""`with request(key, ...)`: names a request and may carry settings of its own."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from dit_cachegraph.layers import Layers


@dataclass(frozen=True, slots=True)
class Request:
    """Who a call belongs to, and the settings that it brings."""

    key: Hashable
    overrides: Layers


_current: ContextVar[Request | None] = ContextVar("dit_cachegraph_request", default=None)


def current_request() -> Request | None:
    """The request that the calling thread or asyncio task is in."""
    return _current.get()


@contextmanager
def entered(request: Request) -> Iterator[None]:
    """Calls inside belong to `request`."""
    token = _current.set(request)
    try:
        yield
    finally:
        _current.reset(token)
