"""In which `with` a call is made, whoever resumes the code that it is in.

A `with` in a function or coroutine holds for what runs in its context: what it calls, child tasks,
copies of the context in other threads. One in a generator holds for what the generator itself does,
since others resume it, each in a context of their own, and do their own work in between:

    def stream():                  pool.submit(next, s)   in `value`, in any thread
        with a scope of `value`:   model(other)           not in it: `s` waits in its `yield`
            yield model(latents)   zip(s, of_another)     each in its own

So such a scope is found by the generator's frame on Python's stack, innermost first. Where that
isn't there, because the generator handed a copy of its context to another thread or task, it is
found in the context, unless the generator waits in its `yield`. A generator that is a context
manager (`contextlib`) is no stream: the scope is that of the code that enters it.
"""

import contextlib
import dis
import inspect
import sys
import threading
import warnings
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from types import CodeType, FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_RESUMED = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_AFTER_YIELD, _RESUME_KIND = 1, 3  # the low two bits of RESUME's argument; 3 is after an `await`
_ENTERS = frozenset(("__enter__", "__exit__", "__aenter__", "__aexit__"))
_MANAGE_GENERATORS = frozenset(
    (
        contextlib._GeneratorContextManager.__enter__.__code__,
        contextlib._GeneratorContextManager.__exit__.__code__,
        contextlib._AsyncGeneratorContextManager.__aenter__.__code__,
        contextlib._AsyncGeneratorContextManager.__aexit__.__code__,
    )
)
_TWO_STREAMS = (
    "two generators run at once that were entered in one context, and which of them handed it to "
    "this thread or task isn't known, so this call is in the request of neither: carry the request "
    "over with handle.bind(function)"
)


@dataclass(eq=False)
class Scope(Generic[T]):
    """A `with` that was entered: `outer` is the scope of its context before, `beneath` the
    innermost of a generator that was on the stack, `owners` the ids of the frames that may have the
    `with`. If that is a generator, `frame` is its own, and `yields` are where it waits in it."""

    value: T
    outer: "Scope[T] | None"
    beneath: "Scope[T] | None"
    owners: frozenset[int]
    frame: FrameType | None
    yields: frozenset[int]
    is_open: bool = True

    @property
    def is_handed_on(self) -> bool:
        """True for a generator that runs, or awaits: what has its context has it from there."""
        return self.frame is not None and self.frame.f_lasti not in self.yields

    def is_within(self, other: "Scope[T]") -> bool:
        """True if it was entered by code that the other's generator ran."""
        beneath = self.beneath
        return beneath is not None and (beneath is other or beneath.is_within(other))


class ScopeRegistry(Generic[T]):
    """The scopes of one kind. Those of generators are held weakly, by their frames: whoever entered
    one holds it, in a list of its own."""

    def __init__(self, name: str) -> None:
        self._lock = threading.RLock()
        self._context: ContextVar[Scope[T] | None] = ContextVar(name, default=None)
        self._by_frame: weakref.WeakValueDictionary[int, Scope[T]] = weakref.WeakValueDictionary()

    def current(self) -> T | None:
        """What the calling code is in, None if it is in nothing."""
        beneath, around = self._on_the_stack(), self._around()
        for scope in around:
            is_functions = scope.frame is None and (beneath is None or scope.beneath is beneath)
            if scope is beneath or is_functions:
                return scope.value
            if beneath is None and scope.is_handed_on:
                return scope.value if _is_the_one(scope, around) else None
        return None if beneath is None else beneath.value

    def enter(self, value: T, entered: list[Scope[T]]) -> None:
        """The code that has the `with` is in `value` from now on; `entered` is what holds it."""
        *managers, owner = _owners(sys._getframe(1))
        is_resumed = bool(owner.f_code.co_flags & _RESUMED)
        scope = Scope(
            value=value,
            outer=next(iter(self._around()), None),
            beneath=self._on_the_stack(),
            owners=frozenset(map(id, (*managers, owner))),
            frame=owner if is_resumed else None,
            yields=_yields_of(owner.f_code) if is_resumed else frozenset(),
        )
        with self._lock:
            entered.append(scope)
            if is_resumed:
                self._by_frame[id(owner)] = scope
        self._context.set(scope)

    def leave(self, entered: list[Scope[T]]) -> None:
        """Leave the last of the scopes that this code `entered`, in whatever context it runs now.

        Raises:
            RuntimeError: none is left.
        """
        with self._lock:
            scope = self._left_by(_owners(sys._getframe(1)), entered)
            entered.remove(scope)
        if scope.frame is None and self._unlink(scope):
            return  # What was begun inside, with a copy of the context, stays in it.
        scope.is_open = False
        with self._lock:
            if scope.frame is not None and self._by_frame.get(id(scope.frame)) is scope:
                self._uncover(scope, scope.frame)
        scope.frame = None
        if self._context.get() is not None:
            self._context.set(next(iter(self._around()), None))

    def _left_by(self, owners: list[FrameType], entered: list[Scope[T]]) -> Scope[T]:
        """That of the innermost frame which has one. Where none has, an `ExitStack` was handed on:
        the innermost of this context, or else the last."""
        for owner in owners:
            for scope in reversed(entered):
                if id(owner) in scope.owners:
                    return scope
        if not entered:
            raise RuntimeError("a request is left that wasn't entered")
        return next((s for s in self._around() if any(s is e for e in entered)), entered[-1])

    def _unlink(self, left: Scope[T]) -> bool:
        """Take a scope out of the context; False if it isn't in it."""
        around = self._around()
        if left not in around:
            return False
        place = around.index(left)
        if place:
            around[place - 1].outer = left.outer
        else:
            self._context.set(left.outer)
        return True

    def _uncover(self, left: Scope[T], frame: FrameType) -> None:
        """The generator is in the scope that it entered before, if that is open still."""
        self._by_frame.pop(id(frame), None)
        below = left.beneath
        while below is not None and not below.is_open:
            below = below.beneath
        if below is not None and below.frame is frame:
            self._by_frame[id(frame)] = below

    def _around(self) -> list[Scope[T]]:
        """The open scopes of the context, innermost first. Those that were left are forgotten."""
        scopes: list[Scope[T]] = []
        scope = self._context.get()
        while scope is not None:
            if scope.is_open:
                if scopes:
                    scopes[-1].outer = scope
                scopes.append(scope)
            scope = scope.outer
        if scopes:
            scopes[-1].outer = None
        return scopes

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
    others = [other for other in around if other is not scope and other.is_handed_on]
    is_known = all(scope.is_within(other) for other in others)
    if not is_known:
        warnings.warn(_TWO_STREAMS, stacklevel=3)
    return is_known


def _yields_of(code: CodeType) -> frozenset[int]:
    """Where a generator waits for whoever resumes it: the offsets of its `yield`s, and in one that
    isn't async of `yield from`. An async one awaits at the same kind of instruction, which is told
    by what is resumed after it (`dis`, RESUME; before Python 3.11 awaiting has one of its own)."""
    is_async, found = bool(code.co_flags & inspect.CO_ASYNC_GENERATOR), set[int]()
    for at, after in pairwise(dis.get_instructions(code)):
        if at.opname != "YIELD_VALUE" and (is_async or at.opname != "YIELD_FROM"):
            continue
        resumes = after.opname == "RESUME"
        if is_async and resumes and (after.arg or 0) & _RESUME_KIND != _AFTER_YIELD:
            continue
        # Which of the two a frame that waits is at depends on the version of Python.
        found |= {at.offset, after.offset} if resumes else {at.offset}
    return frozenset(found)


def _owners(frame: FrameType) -> list[FrameType]:
    """The frames that have the `with`, past `contextlib` and other context managers: the last one,
    and before it each generator that is a context manager."""
    found: list[FrameType] = []
    outer: FrameType | None = frame
    while outer is not None:
        if not _is_context_manager(outer):
            found.append(outer)
            is_managed = outer.f_back is not None and outer.f_back.f_code in _MANAGE_GENERATORS
            if not (is_managed and outer.f_code.co_flags & _RESUMED):
                break
        outer = outer.f_back
    return found or [frame]


def _is_context_manager(frame: FrameType) -> bool:
    return frame.f_code.co_name in _ENTERS or frame.f_globals.get("__name__") == "contextlib"
