"""What users call beside `torch.compile(..., backend="cachedit")`."""

import logging as std_logging
from collections.abc import Callable, Hashable, Sequence

from dit_cachegraph.account.status import status_of
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig, NotCached
from dit_cachegraph.layers import Layers, add_layer
from dit_cachegraph.make_report import report_of
from dit_cachegraph.models import REGISTRY, ModelState
from dit_cachegraph.observers import ObserverHandle
from dit_cachegraph.records import Record
from dit_cachegraph.report import Report
from dit_cachegraph.request_handle import BatchHandle, RequestHandle
from dit_cachegraph.requests.request import Request
from dit_cachegraph.retention.held import Freed, total_of
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.targets import asked_about, modules_in

log = std_logging.getLogger("dit_cachegraph")
_OF_ALL_REQUESTS = frozenset(("max_idle_seconds", "max_state_bytes"))


def configure(target: object, **settings: object) -> None:
    """Change settings of a model, from its next step on. Never recompiles.

    `target` is a pipeline, a transformer, or what `torch.compile` returned; also before the first
    call. Settings stay until they are changed again; those of `torch.compile`'s `options` hold for
    the names that were never given here.

    Raises:
        InvalidConfig: an unknown name or a bad value, or more first and last blocks than there are.
        UnknownTarget: `target` holds no transformer.
    """
    states = REGISTRY.states_of(modules_in(target))
    changed = [add_layer(state.overrides, settings) for state in states]
    for state, overrides in zip(states, changed, strict=True):
        _check(state, overrides)
    for state, overrides in zip(states, changed, strict=True):
        state.overrides = overrides


def summary(target: object, details: bool = False, logging: bool = False) -> Report:
    """What was found, cut and compiled for a model, and what each of its steps decided and why.

    `logging` logs it too, at INFO; `details`, as cache-dit has it, changes nothing: all is in it.
    """
    asked = asked_about(target)
    states = REGISTRY.states_of(modules_in(target))
    statuses = [status_of(one, state) for one, state in zip(asked, states, strict=True)]
    notes = [
        note
        for one, status in zip(asked, statuses, strict=True)
        for note in (one.notes if status.needs_help else one.asides)
    ]
    report = report_of(states, notes, statuses)
    if logging:
        log.info("%s", report)
    return report


def check(target: object) -> None:
    """Return if the last call of each transformer in `target` went through the cache: for tests
    and health checks, after a call.

    Raises:
        NotCached: one didn't, with why not and what helps; nor did one that wasn't called yet.
        UnknownTarget: `target` holds no transformer.
    """
    report = summary(target)
    if not report.is_cached:
        raise NotCached(report.standing)


def reset(target: object, key: Hashable | None = None) -> Freed:
    """Drop what is kept for `target`: of the request named `key`, or of all of them. The next step
    of each computes. Returns what that was: images under way, on each pass, and their bytes."""
    states = REGISTRY.states_of(modules_in(target))
    return total_of(state.requests.drop(key) for state in states)


def request(key: Hashable, **settings: object) -> RequestHandle:
    """A handle of the request named `key`: calls inside `with handle:` belong to it.

    `settings` hold for its calls alone, over those of `configure`. Two images at once under the
    very same conditioning tensors need a key each; everything else is told apart without.

    Raises:
        InvalidConfig: an unknown name, a bad value, or a setting that all requests share.
        TypeError: the key is None, can't be hashed, or isn't equal to itself.
    """
    if key is None or not _can_be_found(key):
        seen = "None" if key is None else f"a {type(key).__name__} that can't be found in one"
        raise TypeError(
            f"request(key): the key names the request, in a dict; got {seen}: give it a string, a "
            "number, or a tuple of them"
        )
    for name in _OF_ALL_REQUESTS & settings.keys():
        raise InvalidConfig(
            f"{name} is for all requests of a model together: give it to configure, or to "
            "torch.compile in `options`"
        )
    resolve(settings)
    return RequestHandle(Request(key, add_layer((), settings) if settings else ()))


def requests(handles: Sequence[RequestHandle]) -> BatchHandle:
    """A batch of requests: inside `with requests([a, b, c]):` the transformer is called with a
    batch of 3, whose first sample is of request `a`.

    Each sample decides alone, by its own settings, and keeps its own state: at each step a handle
    may be left out, or others may come, in any order. Those that compute run together, in a batch
    of so many, where the batch is no fixed number in the compiled graph.

    Raises:
        InvalidConfig: no handle, one twice, or one that has ended. The call itself raises it where
            its batch has another size.
        TypeError: something that `request` didn't return.
    """
    given = list(handles)
    for handle in given:
        if not isinstance(handle, RequestHandle):
            raise TypeError(
                f"requests(handles): a list of what request(key) returns, one a sample; got "
                f"{type(handle).__name__} in it"
            )
    if not given:
        raise InvalidConfig("requests: no handle was given: give one for each sample of the batch")
    keys = [handle.key for handle in given]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise InvalidConfig(
            f"requests: {twice!r} stands for {keys.count(twice)} samples: give each sample a "
            "request of its own; where two passes of guidance are one batch, each of them"
        )
    return BatchHandle(given)


def observe(callback: Callable[[Record], object]) -> ObserverHandle:
    """Tell `callback` of each step of all models of the process that goes through the cache
    (`StepRecord`), and of each request whose handle is ended (`RequestRecord`); until `stop()` of
    what it returns, or the end of `with observe(callback):`.

    It is called in the thread of the step, once all that this step has for the device is launched,
    and waits for nothing; what takes long belongs into a queue of its own. What it raises is logged
    once. Where nobody observes, a step makes no record.

    Raises:
        TypeError: the callback can't be called.
    """
    if not callable(callback):
        raise TypeError(f"observe(callback): a function of one record; got {callback!r}")
    return REGISTRY.observers.add(callback)


def _can_be_found(key: object) -> bool:
    """False for what a dict refuses, and for what isn't equal to itself, like NaN, or doesn't say
    whether it is, like a tensor."""
    try:
        hash(key)
        return bool(key == key)
    except (TypeError, ValueError, RuntimeError):
        return False


def _check(state: ModelState, overrides: Layers) -> None:
    resolve(*map(dict, overrides))
    for graph in list(state.graphs.values()):
        if isinstance(graph, CachedModel):
            graph.plans.plan(overrides, ())
