"""Who is told what the models of the process do."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from dit_cachegraph.records import Record

log = logging.getLogger("dit_cachegraph")
Callback = Callable[[Record], object]


class ObserverHandle:
    """A callback that is told, until `stop` is called or the `with` block ends."""

    def __init__(self, callback: Callback, observers: "Observers") -> None:
        self._callback, self._observers = callback, observers
        self._has_failed = False

    def tell(self, record: Record) -> None:
        """Tell it. What it raises is logged the first time, and never reaches the model."""
        try:
            self._callback(record)
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                log.exception(
                    "%r, which observes the cache, raised at a %s: it goes on being told, and what "
                    "else it raises is not logged",
                    self._callback,
                    type(record).__name__,
                )

    def stop(self) -> None:
        """Tell it nothing more; a record that another thread makes right now may still come."""
        self._observers.remove(self)

    def __enter__(self) -> "ObserverHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class Observers:
    """All who are told, in the order in which they came; false where there is nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: tuple[ObserverHandle, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._handles)

    def add(self, callback: Callback) -> ObserverHandle:
        """Tell `callback` from now on."""
        handle = ObserverHandle(callback, self)
        with self._lock:
            self._handles = (*self._handles, handle)
        return handle

    def remove(self, handle: ObserverHandle) -> None:
        """Tell it nothing more; nothing where that was so."""
        with self._lock:
            self._handles = tuple([o for o in self._handles if o is not handle])

    def tell(self, record: Record) -> None:
        """Tell all of them, in the thread that calls."""
        for handle in self._handles:
            handle.tell(record)
