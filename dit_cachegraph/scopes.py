"""In which `with` a call is made, whoever resumes the code that it is in.

A `with` in a function or coroutine holds for what runs in its context: what it calls, child tasks,
copies of the context in other threads. One in a generator holds for what the generator itself does,
since others resume it, each in a context of their own, and do their own work in between:

    def stream():                  pool.submit(next, s)   in `value`, in any thread
        with a scope of `value`:   model(other)           not in it: `s` waits in its `yield`
            yield model(latents)   zip(s, of_another)     each in its own

So such a scope is found by the generator's frame on Python's stack, innermost first. Where that
isn't there, because the generator handed a copy of its context to another thread or task, it is
found in the context. A generator that is a context manager (`contextlib`) is no stream: the scope
is that of the code that enters it.
"""

import asyncio
import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_RESUMED = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_ENTERS = frozenset(("__enter__", "__exit__", "__aenter__", "__aexit__"))
_TWO_STREAMS = (
    "two generators are each inside of a request here, and which of them handed its context to "
    "this thread or task isn't known, so this call is in neither: carry the request over with "
    "handle.bind(function)"
)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Scope(Generic[T]):
    """A `with` that was entered: `value` is what it holds for, None once it was left; `outer` the
    scope of its context before, `beneath` the innermost of a generator that was on the stack.
    `frame` is that of the generator, if it is in one, and `flow` the thread and task."""

    value: T | None
    outer: "Scope[T] | None"
    beneath: "Scope[T] | None"
    frame: FrameType | None
    flow: tuple[object, ...]

    def around(self) -> Iterator["Scope[T]"]:
        """The open scopes of its context, itself first."""
        scope: Scope[T] | None = self
        while scope is not None:
            if scope.value is not None:
                yield scope
            scope = scope.outer

    def is_within(self, other: "Scope[T]") -> bool:
        """True if it was entered by code that the other's generator ran."""
        return self.beneath is not None and (self.beneath is other or self.beneath.is_within(other))


class ScopeRegistry(Generic[T]):
    """The scopes of one kind. Those of generators are held weakly, by their frames: whoever entered
    one holds it."""

    def __init__(self, name: str) -> None:
        self._context: ContextVar[Scope[T] | None] = ContextVar(name, default=None)
        self._by_frame: weakref.WeakValueDictionary[int, Scope[T]] = weakref.WeakValueDictionary()

    def current(self) -> T | None:
        """What the calling code is in, None if it is in nothing."""
        beneath, innermost = self._on_the_stack(), self._context.get()
        around = [] if innermost is None else list(innermost.around())
        for scope in around:
            is_functions = scope.frame is None and (beneath is None or scope.beneath is beneath)
            if scope is beneath or is_functions:
                return scope.value
            if beneath is None and scope.frame is not None and scope.flow != _flow():
                return scope.value if _is_the_one(scope, around) else None
        return None if beneath is None else beneath.value

    def enter(self, value: T) -> Scope[T]:
        """The code that has the `with` is in `value` from now on. To be held until it is left."""
        owner, beneath = _owner(sys._getframe(1)), self._on_the_stack()
        is_resumed = bool(owner.f_code.co_flags & _RESUMED)
        frame, flow = (owner, _flow()) if is_resumed else (None, ())
        scope = Scope(value, self._open_in_context(), beneath, frame, flow)
        if frame is not None:
            self._by_frame[id(frame)] = scope
        self._context.set(scope)
        return scope

    def leave(self, entered: list[Scope[T]]) -> None:
        """Leave one of the scopes that were `entered` for one value: the last one of the code that
        has the `with`, in whatever context that runs now."""
        scope = self._left_by(_owner(sys._getframe(1)), entered)
        entered.remove(scope)
        scope.value = None
        if scope.frame is not None:
            self._by_frame.pop(id(scope.frame), None)
            if scope.beneath is not None and scope.beneath.frame is scope.frame:
                self._by_frame[id(scope.frame)] = scope.beneath
        scope.frame, scope.flow = None, ()
        if self._context.get() is not None:
            self._context.set(self._open_in_context())

    def _left_by(self, owner: FrameType, entered: list[Scope[T]]) -> Scope[T]:
        of_owner = [scope for scope in entered if scope.frame is owner]
        innermost = self._context.get()
        in_context = [] if innermost is None else list(innermost.around())
        here = [s for s in in_context if s.frame is None and any(s is e for e in entered)]
        return [*entered, *reversed(here), *of_owner][-1]

    def _open_in_context(self) -> Scope[T] | None:
        innermost = self._context.get()
        return None if innermost is None else next(innermost.around(), None)

    def _on_the_stack(self) -> Scope[T] | None:
        """The innermost open scope of a generator that is running."""
        if not self._by_frame:
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_flags & _RESUMED:
                scope = self._by_frame.get(id(frame))
                if scope is not None and scope.frame is frame:
                    return scope
            frame = frame.f_back
        return None


def _is_the_one(scope: Scope[T], around: list[Scope[T]]) -> bool:
    """True if no other generator can have handed over its context, in which all of these are."""
    others = [s for s in around if s is not scope and s.frame is not None]
    is_known = all(scope.is_within(other) for other in others)
    if not is_known:
        warnings.warn(_TWO_STREAMS, stacklevel=3)
    return is_known


def _owner(frame: FrameType) -> FrameType:
    """The frame that has the `with`, past `contextlib` and other context managers."""
    while frame.f_back is not None:
        is_managers = _is_context_manager(frame)
        is_its_generator = frame.f_code.co_flags & _RESUMED and _is_context_manager(frame.f_back)
        if not is_managers and not is_its_generator:
            break
        frame = frame.f_back
    return frame


def _is_context_manager(frame: FrameType) -> bool:
    return frame.f_code.co_name in _ENTERS or frame.f_globals.get("__name__") == "contextlib"


def _flow() -> tuple[object, ...]:
    """The thread that runs, and the task of its event loop if there is one."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident(), task
