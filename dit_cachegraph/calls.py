"""Whether the calls of a model go through the cache: noted at the end of each.

A call that Dynamo runs without us (its limit of compilations is reached, a stance, `disable`) runs
no graph of ours, so no graph can tell. But torch lets a backend enter a context around each call
of what `torch.compile` returned, whatever becomes of the call: `enter_exit_hooks` of its context,
which `torch.compile` leaves empty. The first graph of ours that runs under such a call finds it on
Python's stack, and puts a `CallHook` there:

    compile_wrapper: begin | frames of the model: graphs of ours, or none | end -> CallLog

A call may be several graphs, and is cached if any of them has the trunk. So whether to warn is
known at its end, and one warning tells all of it.
"""

import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from weakref import WeakSet

from dit_cachegraph.call_log import Outcome, Unasked
from dit_cachegraph.call_stack import compiled_call, outermost_module
from dit_cachegraph.exc import NotCachedWarning
from dit_cachegraph.models import REGISTRY, ModelState
from dit_cachegraph.plan import Uncacheable

_INSTALLING = threading.Lock()


class CallUnderWay:
    """The models of which graphs have run in this call, and what of it is known so far."""

    __slots__ = ("broke", "is_part", "models", "outcomes", "refusals")

    def __init__(self) -> None:
        self.models: dict[ModelState, None] = {}
        self.refusals: dict[Uncacheable, None] = {}
        self.outcomes: set[Outcome] = set()
        self.is_part = False
        self.broke = False


_under_way: ContextVar[CallUnderWay | None] = ContextVar("dit_cachegraph_call", default=None)


class CallHook:
    """What torch calls at the begin of each call of one compiled function; it returns the end."""

    def __init__(self) -> None:
        self._models: WeakSet[ModelState] = WeakSet()

    def __call__(self) -> Callable[[], None]:
        outer, call = _under_way.get(), CallUnderWay()
        _under_way.set(call)
        return partial(self._end, call, outer)

    def _end(self, call: CallUnderWay, outer: CallUnderWay | None) -> None:
        _under_way.set(outer)
        if call.models:
            for model in call.models:
                if model not in self._models:
                    self._models.add(model)
            _settle(call)
        elif not call.is_part and sys.exc_info()[0] is None:
            why = Unasked.now()
            for model in list(self._models):
                model.calls.note_unasked(why)


def note_cached(model: ModelState) -> None:
    """The trunk of `model` runs in the call under way."""
    _note(model, Outcome.CACHED)


def note_refused(model: ModelState, refusal: Uncacheable, *, is_block: bool = False) -> None:
    """A graph of `model` that isn't cached, of one block maybe, runs in the call under way."""
    call = _under_way.get() or _begun()
    is_alone = call is None
    call = call or CallUnderWay()
    call.models[model] = None
    call.broke = call.broke or is_block or refusal.tells_break or bool(call.refusals)
    call.refusals[refusal] = None
    if is_alone:
        _settle(call)


def note_watched(model: ModelState) -> None:
    """A call of `model` computes, and is watched to see whether the next may be reused."""
    _note(model, Outcome.WATCHED)


def _note(model: ModelState, outcome: Outcome) -> None:
    call = _under_way.get() or _begun()
    if call is None:
        model.calls.note(outcome, ())
        return
    call.models[model] = None
    call.outcomes.add(outcome)


def note_part() -> None:
    """The compiled call under way is one of several in a call of the model, which is noted."""
    call = _under_way.get()
    if call is not None:
        call.is_part = True


def _begun() -> CallUnderWay | None:
    """The call that has begun before there was a hook; there is one from now on. None where none
    is found on the stack."""
    frame = compiled_call()
    if frame is None:
        return None
    hooks = getattr(frame.f_locals.get("self"), "enter_exit_hooks", None)
    cleanups = frame.f_locals.get("cleanups")
    if not isinstance(hooks, list) or not isinstance(cleanups, list):
        return None
    with _INSTALLING:
        hook = next((found for found in hooks if isinstance(found, CallHook)), None)
        if hook is None:
            hook = CallHook()
            hooks.append(hook)
    cleanups.append(hook())
    return _under_way.get()


def _settle(call: CallUnderWay) -> None:
    for outcome in (Outcome.CACHED, Outcome.WATCHED):
        if outcome in call.outcomes:
            for model in call.models:
                model.calls.note(outcome, ())
            return
    # Why the trunk was refused, where that is known, before why other graphs are without one; of
    # these first where the call broke.
    refusals = tuple(sorted(call.refusals, key=lambda r: (r.has_no_blocks, not r.tells_break)))
    for model in call.models:
        model.calls.note(Outcome.REFUSED, refusals, broke=call.broke)
    if any(model.calls.is_tried_again for model in call.models):
        return
    is_new = [model.calls.is_first_warning() for model in call.models]
    said = "\n".join(map(str, refusals))
    # A model that was compiled block by block has as many calls, and is found around them.
    if any(is_new) and REGISTRY.is_first_warning(outermost_module(), said):
        warnings.warn(said, NotCachedWarning, stacklevel=3)
