"""A request as a value: entered at every step, in any thread, task or generator."""

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from dit_cachegraph.models import REGISTRY
from dit_cachegraph.requests.held import Freed
from dit_cachegraph.requests.request import REQUEST_SCOPES, Request
from dit_cachegraph.scopes import Scope
from dit_cachegraph.step_log import StepReport

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class RequestReport:
    """What was done under one handle: its own steps (the last thousand), and counts of all."""

    key: Hashable
    steps: tuple[StepReport, ...]
    num_hits: int
    num_computed: int
    num_blocks: int
    num_blocks_run: int

    @property
    def share_of_work(self) -> float | None:
        """The blocks that ran, as a share of those that would have without a cache."""
        return self.num_blocks_run / self.num_blocks if self.num_blocks else None


class RequestHandle:
    """Calls inside `with handle:` belong to one request, and go by its settings.

    It is entered as often as one likes, at every step, in any thread, generator or asyncio task,
    in several at once, and inside of others: the innermost holds. A `with` around a `yield` holds
    for what the generator does, whoever resumes it, and not for what others do in between; where
    the generator is a context manager (`contextlib.contextmanager`), for the body.

    Two handles of one key are one request. Nothing ends it but `end`, its last step, and
    `max_idle_seconds`.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._entered: list[Scope[Request]] = []

    @property
    def key(self) -> Hashable:
        return self._request.key

    @property
    def report(self) -> RequestReport:
        """Its own steps, however many others ran since."""
        log = self._request.log
        tally = log.tally
        return RequestReport(
            self.key,
            tuple(log.steps),
            tally.num_hits,
            tally.num_computed,
            tally.num_blocks,
            tally.num_blocks_run,
        )

    def __enter__(self) -> "RequestHandle":
        self._entered.append(REQUEST_SCOPES.enter(self._request))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        REQUEST_SCOPES.leave(self._entered)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function` under this request, wherever it is called: in an executor, as a task, or as a
        generator that somebody else resumes."""
        kinds: tuple[tuple[Callable[[object], bool], Callable[..., object]], ...] = (
            (inspect.isasyncgenfunction, self._generate_async),
            (inspect.isgeneratorfunction, self._generate),
            (inspect.iscoroutinefunction, self._await),
        )
        run = next((run for is_kind, run in kinds if is_kind(function)), self._call)
        return functools.wraps(function)(cast(Callable[P, R], functools.partial(run, function)))

    def _call(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        with self:
            return function(*args, **kwargs)

    async def _await(
        self, function: Callable[..., Awaitable[T]], *args: object, **kwargs: object
    ) -> T:
        with self:
            return await function(*args, **kwargs)

    def _generate(
        self, function: Callable[..., Generator[T, S, U]], *args: object, **kwargs: object
    ) -> Generator[T, S, U]:
        with self:
            return (yield from function(*args, **kwargs))

    async def _generate_async(
        self, function: Callable[..., AsyncGenerator[T, None]], *args: object, **kwargs: object
    ) -> AsyncGenerator[T, None]:
        with self:
            async with contextlib.aclosing(function(*args, **kwargs)) as values:
                async for value in values:
                    yield value

    def end(self) -> Freed:
        """The request is over, also where it is in the middle: frees what every model keeps of it,
        and says what that was. Calls that are still made under this handle run whole and leave
        nothing; another handle of the same key is a new request."""
        self._request.is_ended = True
        freed = [state.requests.drop(self.key) for state in REGISTRY.states()]
        return Freed(sum(f.num_tracks for f in freed), sum(f.nbytes for f in freed))

    def __repr__(self) -> str:
        ended = ", ended" if self._request.is_ended else ""
        return f"<request {self.key!r}{ended}>"
