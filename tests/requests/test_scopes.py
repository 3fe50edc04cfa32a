"""In which `with` a call is made: functions, tasks, generators and threads, in every order."""

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from dit_cachegraph.scopes import ScopeRegistry


class Holder:
    """What a handle does: enters and leaves scopes of one value."""

    def __init__(self, registry, value):
        self.registry, self.value, self.entered = registry, value, []

    def __enter__(self):
        self.registry.enter(self.value, self.entered)
        return self

    def __exit__(self, *error):
        self.registry.leave(self.entered)


@pytest.fixture
def registry():
    return ScopeRegistry("test")


@pytest.fixture
def holds(registry):
    return lambda value: Holder(registry, value)


def values(registry, holder, count=3):
    """A stream: what its own steps are in."""
    with holder:
        for _ in range(count):
            yield registry.current()


def in_a_thread(function, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def test_the_innermost_holds_and_each_is_left(registry, holds):
    a, b = holds("a"), holds("b")
    seen = [registry.current()]
    with a:
        seen.append(registry.current())
        with b, a:
            seen.append(registry.current())
        with b:
            seen.append(registry.current())
        seen.append(registry.current())
    assert [*seen, registry.current()] == [None, "a", "a", "b", "a", None]
    assert a.entered == b.entered == []


def test_streams_in_turn_in_one_thread(registry, holds):
    """And in between, whoever takes their values is in his own."""
    own, between = [], []
    with holds("mine"):
        streams = [values(registry, holds(name)) for name in "ab"]
        for pair in zip(*streams, strict=True):
            own.append(pair)
            between.append(registry.current())
    assert own == [("a", "b")] * 3 and between == ["mine"] * 3
    assert registry.current() is None


@pytest.mark.parametrize("copies", [True, False], ids=["copied context", "the thread's own"])
def test_a_stream_that_is_resumed_in_other_threads(registry, holds, copies):
    holder = holds("a")
    stream, seen = values(registry, holder), []
    contexts = []
    for _ in range(4):
        run = contextvars.copy_context().run if copies else lambda f, *args: f(*args)
        contexts.append(in_a_thread(run, next, stream, None))
        seen.append(registry.current())
    assert contexts == ["a", "a", "a", None] and seen == [None] * 4
    assert holder.entered == []


def test_closed_in_another_context_it_leaves_nothing(registry, holds):
    """Each context that it was entered in is free afterwards, and nothing is raised."""
    holder = holds("a")
    stream = values(registry, holder)
    first, last = contextvars.copy_context(), contextvars.copy_context()
    assert first.run(next, stream) == "a"
    last.run(stream.close)
    assert first.run(registry.current) is last.run(registry.current) is registry.current() is None
    assert holder.entered == []


def test_dropped_half_way_it_is_left(registry, holds):
    holder = holds("a")
    stream = values(registry, holder)
    next(stream)
    assert len(holder.entered) == 1
    del stream
    gc.collect()
    assert holder.entered == [] and registry.current() is None


def test_an_exception_leaves_it(registry, holds):
    holder = holds("a")
    stream = values(registry, holder)
    next(stream)
    with pytest.raises(KeyError):
        stream.throw(KeyError)
    with pytest.raises(ValueError), holder:
        raise ValueError
    assert holder.entered == [] and registry.current() is None


def test_what_a_stream_calls_is_inside_of_it(registry, holds):
    def inner():
        with holds("inner"):
            yield registry.current()
            yield registry.current()

    def function():
        with holds("function"):
            (first, second) = inner()
            return [first, registry.current(), second]

    def stream():
        with holds("outer"):
            yield [*function(), registry.current()]
            yield list(inner())
            yield from inner()
            yield registry.current()

    expected = ["inner", "function", "inner", "outer"], ["inner"] * 2, "inner", "inner", "outer"
    assert tuple(stream()) == expected


@pytest.mark.parametrize("is_named", [True, False])
def test_a_generator_that_is_a_context_manager_is_no_stream(registry, holds, is_named):
    @contextlib.contextmanager
    def scope(name):
        with holds(name):
            yield

    class Scope:
        def __init__(self, name):
            self.holder = holds(name)

        def __enter__(self):
            self.holder.__enter__()

        def __exit__(self, *error):
            self.holder.__exit__(*error)

    manager = scope if is_named else Scope

    def stream(name):
        with contextlib.ExitStack() as stack:
            stack.enter_context(manager(name))
            for _ in range(2):
                yield registry.current()

    with manager("body"):
        assert registry.current() == "body"
        assert (
            list(zip(stream("a"), stream("b"), [registry.current()] * 2, strict=True))
            == [("a", "b", "body")] * 2
        )
        assert registry.current() == "body"
    assert registry.current() is None


def test_threads_that_get_a_copy_of_the_context(registry, holds):
    """From a function and from a stream; a thread of its own is in nothing."""

    def step():
        return in_a_thread(contextvars.copy_context().run, registry.current)

    def stream():
        with holds("stream"):
            yield step(), in_a_thread(registry.current)

    with holds("function"):
        assert (step(), in_a_thread(registry.current)) == ("function", None)
        assert list(stream()) == [("stream", None)]


def test_tasks(registry, holds):
    async def child():
        await asyncio.sleep(0)
        return registry.current()

    async def task(name):
        with holds(name):
            await asyncio.sleep(0)
            children = await asyncio.gather(child(), asyncio.to_thread(registry.current))
            return [registry.current(), *children, await child()]

    async def main():
        return await asyncio.gather(task("a"), task("b")), registry.current()

    assert asyncio.run(main()) == ([["a"] * 4, ["b"] * 4], None)


def test_async_streams(registry, holds):
    """Their own steps, in threads and child tasks too; whoever takes the values isn't inside."""

    async def child():
        return registry.current()

    async def stream(name):
        with holds(name):
            for _ in range(2):
                there = await asyncio.gather(child(), asyncio.to_thread(registry.current))
                yield [registry.current(), *there]

    async def take(name):
        taken = []
        async for value in stream(name):
            taken.append((value, registry.current()))
        return taken

    async def main():
        return await asyncio.gather(take("a"), take("b"))

    assert asyncio.run(main()) == [[([name] * 3, None)] * 2 for name in "ab"]


async def handing_on(registry, holds, name, look=None):
    """An async stream that hands its context to threads, of what it and they are in."""
    with holds(name):
        for _ in range(3):
            yield registry.current(), await asyncio.to_thread(look or registry.current)


def test_two_async_streams_in_turn_in_one_task(registry, holds):
    """Which of them hands its context on is known, since the other waits in its `yield`."""

    async def main():
        a, b = (handing_on(registry, holds, name) for name in "ab")
        taken = [await anext(s) for s in (a, b, a)]
        await a.aclose()
        return [*taken, await anext(b)]

    assert asyncio.run(main()) == [("a", "a"), ("b", "b"), ("a", "a"), ("b", "b")]


def test_two_that_run_at_once_in_one_context_are_not_told_apart(registry, holds):
    """What each does itself is its own; what both hand to threads is not known, and said."""

    both, are_at_once = threading.Barrier(2), threading.Event()

    def look():
        """While both streams wait for their threads."""
        if are_at_once.is_set():
            both.wait()
        found = registry.current()
        if are_at_once.is_set():
            both.wait()
        return found

    async def main():
        a, b = (handing_on(registry, holds, name, look) for name in "ab")
        await anext(a), await anext(b)
        are_at_once.set()
        return await asyncio.gather(anext(a), anext(b))

    with pytest.warns(UserWarning, match="carry the request over with handle.bind"):
        assert asyncio.run(main()) == [("a", None), ("b", None)]


def test_who_takes_values_is_not_inside_in_threads_and_tasks_either(registry, holds):
    """The context that he hands on has the stream in it, which waits in its `yield`."""

    async def child():
        return registry.current()

    async def main():
        seen = []
        async for _ in handing_on(registry, holds, "a"):
            seen.append(await asyncio.to_thread(registry.current))
            seen.append(await asyncio.create_task(child()))
        return seen

    assert asyncio.run(main()) == [None] * 6
    with holds("mine"):
        stream = values(registry, holds("a"))
        next(stream)
        assert in_a_thread(contextvars.copy_context().run, registry.current) == "mine"
        assert asyncio.run(main()) == ["mine"] * 6
        stream.close()


def test_a_stream_inside_of_a_stream_that_hands_on(registry, holds):
    async def outer():
        with holds("outer"):
            async for pair in handing_on(registry, holds, "inner"):
                yield pair, await asyncio.to_thread(registry.current)

    async def main():
        return [value async for value in outer()]

    assert asyncio.run(main()) == [(("inner", "inner"), "outer")] * 3


def test_what_is_begun_inside_stays_inside(registry, holds):
    """A task and a thread that outlive the `with` which they were begun in."""

    async def task():
        await asyncio.sleep(0.01)
        return registry.current()

    async def main():
        with holds("a"):
            begun, context = asyncio.create_task(task()), contextvars.copy_context()
        return await begun, context.run(registry.current), registry.current()

    assert asyncio.run(main()) == ("a", "a", None)


@pytest.mark.parametrize("is_one_handle", [True, False])
def test_closing_a_stream_leaves_its_own_scope(registry, holds, is_one_handle):
    """By `contextlib.closing`, inside of another `with` and beside another stream."""
    outer = holds("a")
    inner = outer if is_one_handle else holds("a")
    beside = values(registry, outer)
    next(beside)
    with outer:
        with contextlib.closing(values(registry, inner)) as stream:
            next(stream)
        assert registry.current() == "a"
    assert next(beside) == "a" and registry.current() is None
    beside.close()
    assert outer.entered == inner.entered == []


def test_a_coroutine_that_is_closed_leaves_its_own_scope(registry, holds):
    holder = holds("a")

    async def waits():
        with holder:
            await asyncio.sleep(10)

    async def main():
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        with holder:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            coroutine = waits()
            contextvars.copy_context().run(coroutine.send, None)
            coroutine.close()
            return registry.current()

    assert asyncio.run(main()) == "a"
    assert holder.entered == [] and registry.current() is None


def test_left_in_another_order(registry, holds):
    a, b = holds("a"), holds("b")

    def stream():
        a.__enter__()
        b.__enter__()
        yield registry.current()
        a.__exit__()
        yield registry.current()
        b.__exit__()
        yield registry.current()

    assert list(stream()) == ["b", "b", None]
    with pytest.raises(RuntimeError, match="wasn't entered"):
        a.__exit__()


def test_streams_that_overlap_leave_no_chain_of_scopes(registry, holds):
    """Two are always under way in one thread; what was left is gone."""
    gone, under_way = [], []
    for i in range(50):
        holder = holds(i)
        under_way.append(values(registry, holder))
        next(under_way[-1])
        gone.append(weakref.ref(holder.entered[0]))
        if len(under_way) > 2:
            under_way.pop(0).close()
    gc.collect()
    assert sum(scope() is not None for scope in gone) <= 3


def test_one_value_in_many_threads_at_once(registry, holds):
    """Functions and streams, as often as threads can switch."""
    holder, seen = holds("a"), []

    def run(number):
        for _ in range(200):
            if number % 2:
                with holder:
                    seen.append(registry.current())
            else:
                seen.extend(values(registry, holder, count=2))
            assert registry.current() is None
        return registry.current()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(run, range(8))) == [None] * 8
    finally:
        sys.setswitchinterval(interval)
    assert set(seen) == {"a"} and holder.entered == []


def test_left_by_hand_in_another_thread(registry, holds):
    """As an `ExitStack` that a server closes where the client went away."""
    holder = holds("a")
    stack = contextlib.ExitStack()
    stack.enter_context(holder)
    assert registry.current() == "a"
    in_a_thread(stack.close)
    assert registry.current() is None and holder.entered == []


def test_nothing_is_held_of_a_stream_that_is_over(registry, holds):
    class Value:
        pass

    value = Value()
    gone = weakref.ref(value)
    stream = values(registry, holds(value), count=1)
    seen = [item is value for item in stream]
    del stream, value
    gc.collect()
    assert seen == [True] and gone() is None
