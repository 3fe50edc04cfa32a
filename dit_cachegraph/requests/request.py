"""Who a call belongs to, by name, and the settings that it brings."""

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from dit_cachegraph.layers import Layers
from dit_cachegraph.scopes import ScopeRegistry
from dit_cachegraph.step_log import StepLog

_RUNS_WHOLE: Layers = ((("enabled", False),),)


@dataclass(eq=False)
class Request:
    """One request: `logs` are of its own steps. Once it `is_ended` its calls run whole, and nothing
    is kept of them: a worker may be in the middle of one while its client goes away. `why_whole` is
    another reason for that."""

    key: Hashable
    settings: Layers
    logs: tuple[StepLog, ...] = field(default_factory=lambda: (StepLog(),))
    is_ended: bool = False
    why_whole: str | None = None
    _made: float = field(default_factory=time.perf_counter)
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def end(self) -> bool:
        """It is over. True for the first who says so."""
        with self._ending:
            is_first, self.is_ended = not self.is_ended, True
        return is_first

    def seconds_since_made(self) -> float:
        """By the host's clock."""
        return time.perf_counter() - self._made

    @property
    def current_key(self) -> Hashable:
        """What its calls are told by. Those that are made after its end, by nothing that a new
        request of the same name has."""
        return self if self.is_ended else self.key

    @property
    def overrides(self) -> Layers:
        return (*self.settings, *_RUNS_WHOLE) if self.is_ended else self.settings

    def __str__(self) -> str:
        return str(self.key)


def together(requests: Sequence[Request], why: str) -> Request:
    """The requests of a batch as one, where its samples can't be told apart: it runs whole."""
    logs = tuple([log for request in requests for log in request.logs])
    keys = tuple([request.key for request in requests])
    return Request(keys, (), logs, is_ended=True, why_whole=f"runs whole: {why}")


# A request, or those of a batch, one for each sample.
Caller = Request | tuple[Request, ...]
REQUEST_SCOPES: ScopeRegistry[Caller] = ScopeRegistry("dit_cachegraph_request")


def current_caller() -> Caller | None:
    """The request that the calling code is in, or those of its batch."""
    return REQUEST_SCOPES.current()
