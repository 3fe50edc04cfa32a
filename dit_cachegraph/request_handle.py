"""A request as a value: entered at every step, in any thread, task or generator."""

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Hashable, Sequence
from types import TracebackType
from typing import ParamSpec, TypeVar, cast

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.records import RequestRecord, RequestReport, report_of_request
from dit_cachegraph.requests.request import REQUEST_SCOPES, Caller, Request
from dit_cachegraph.retention.held import Freed, total_of
from dit_cachegraph.scopes import Scope

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
H = TypeVar("H", bound="_Scoped")


class _Scoped:
    """What calls can be inside of: entered as often as one likes, by anybody."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._entered: list[Scope[Caller]] = []

    def __enter__(self: H) -> H:
        REQUEST_SCOPES.enter(self._caller, self._entered)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        REQUEST_SCOPES.leave(self._entered)

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function` inside of this, wherever it is called: in an executor, as a task; and each
        step of the generator or coroutine that it returns, whoever resumes it."""
        run: Callable[..., object]
        if inspect.iscoroutinefunction(function):
            run = functools.partial(self._await_call, function)
        else:
            run = functools.partial(self._call, function)
        return functools.wraps(function)(cast(Callable[P, R], run))

    def _call(self, function: Callable[..., object], *args: object, **kwargs: object) -> object:
        with self:
            made = function(*args, **kwargs)
        if inspect.isasyncgen(made):
            return _AsyncSteps(self, made)
        if inspect.isgenerator(made):
            return _Steps(self, made)
        return self._await(made) if inspect.iscoroutine(made) else made

    async def _await_call(
        self, function: Callable[..., Awaitable[T]], *args: object, **kwargs: object
    ) -> T:
        return await self._await(function(*args, **kwargs))

    async def _await(self, made: Awaitable[T]) -> T:
        with self:
            return await made


class RequestHandle(_Scoped):
    """Calls inside `with handle:` belong to one request, and go by its settings.

    It is entered as often as one likes, at every step, in any thread, generator or asyncio task,
    in several at once, and inside of others: the innermost holds. A `with` around a `yield` holds
    for what the generator does, whoever resumes it, and not for what others do in between; where
    the generator is a context manager (`contextlib.contextmanager`), for the body.

    Handles of one key are one request as long as none of them has ended; each has settings and a
    report of its own.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request

    @property
    def has_ended(self) -> bool:
        return self.request.is_ended

    @property
    def key(self) -> Hashable:
        return self.request.key

    @property
    def report(self) -> RequestReport:
        """Its own steps, however many others ran since."""
        return report_of_request(self.key, self.request.logs[0])

    def end(self) -> Freed:
        """The request is over, also where it is in the middle: frees what every model keeps of it,
        and says what that was. Calls that are still made under this handle run whole and leave
        nothing; another handle of the same key is a new request."""
        is_first = self.request.end()
        freed = total_of(state.requests.drop(self.key) for state in REGISTRY.states())
        if is_first and REGISTRY.observers:
            record = RequestRecord(self.report, freed.nbytes, self.request.seconds_since_made())
            REGISTRY.observers.tell(record)
        return freed

    def __repr__(self) -> str:
        ended = ", ended" if self.request.is_ended else ""
        return f"<request {self.key!r}{ended}>"


class BatchHandle(_Scoped):
    """Calls inside `with` have a batch with one request for each sample, in this order: each sample
    decides alone, by its own settings, and keeps its own state.

    It is entered as a handle is. Inside of another batch it can't be, and a single handle that is
    entered inside holds for the calls inside of it.
    """

    def __init__(self, handles: Sequence[RequestHandle]) -> None:
        self.handles = tuple(handles)
        super().__init__(tuple([handle.request for handle in self.handles]))
        self._check_ended()

    def __enter__(self) -> "BatchHandle":
        self._check_ended()
        around = REQUEST_SCOPES.current()
        if isinstance(around, tuple):
            names = ", ".join(map(str, around))
            raise InvalidConfig(
                f"requests: entered inside of the batch [{names}], whose samples have their "
                "handles already: leave that one first"
            )
        return super().__enter__()

    def _check_ended(self) -> None:
        for handle in self.handles:
            if handle.has_ended:
                raise InvalidConfig(
                    f"requests: {handle.key!r} has ended: leave its sample out of the batch, or "
                    "give it a new handle"
                )


class _Steps(Generator[T, S, U]):
    """A generator, each step of which is inside of a request."""

    def __init__(self, handle: _Scoped, steps: Generator[T, S, U]) -> None:
        self._handle, self._steps = handle, steps

    def send(self, value: S) -> T:
        with self._handle:
            return self._steps.send(value)

    def throw(self, *error: type[BaseException] | BaseException) -> T:  # type: ignore[override]
        with self._handle:
            return self._steps.throw(*error)  # type: ignore[call-overload]


class _AsyncSteps(AsyncGenerator[T, S]):
    """The same of an async generator."""

    def __init__(self, handle: _Scoped, steps: AsyncGenerator[T, S]) -> None:
        self._handle, self._steps = handle, steps

    async def asend(self, value: S) -> T:
        with self._handle:
            return await self._steps.asend(value)

    async def athrow(self, *error: type[BaseException] | BaseException) -> T:  # type: ignore[override]
        with self._handle:
            return await self._steps.athrow(*error)  # type: ignore[call-overload]
