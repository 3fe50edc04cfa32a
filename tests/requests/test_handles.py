"""Requests as handles: each step is of the right one, whoever makes it, and ending one frees it."""

import asyncio
import contextvars
import gc
import inspect
import itertools
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.requests.conditioning import MAX_IDLE
from dit_cachegraph.step_log import MAX_STEPS_KEPT
from support.toy_dits import GatedBlock, toy_inputs
from support.toy_images import NUM_STEPS, compile_reading, denoise


class ToBeMissed:
    """Like NaN, it isn't found again."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return False


@pytest.fixture
def model():
    return compile_reading()


def draw(model, seed=0, text=None):
    (*_, last) = denoise(model, seed, text)
    return last


def stream(handle, steps):
    """As a server writes it for previews."""
    with handle:
        yield from steps


def alone(model, seed=0, text=None, **settings):
    """What an image is, and its decisions, with nobody else about."""
    handle = dc.request("alone", **settings)
    with handle:
        last = draw(model, seed, text)
    handle.end()
    return last, decisions(handle)


def decisions(handle):
    return [step.hit for step in handle.report.steps]


def decided(model, num_steps):
    return [(step.request, step.hit) for step in dc.summary(model).steps[-num_steps:]]


def test_a_handle_has_its_own_steps_whoever_runs_beside_it(model):
    handle, other = dc.request("a"), dc.request("b", enabled=False)
    for _ in zip(stream(handle, denoise(model)), stream(other, denoise(model, 1)), strict=True):
        pass
    _, expected = alone(model)
    assert decisions(handle) == expected and 2 <= sum(expected) < NUM_STEPS
    assert decisions(other) == [False] * NUM_STEPS
    report = handle.report
    assert (report.key, report.num_hits, report.num_computed) == (
        "a",
        sum(expected),
        10 - report.num_hits,
    )
    assert report.share_of_work == 1 - 3 * report.num_hits / 40
    assert dc.request("new").report.share_of_work is None


def test_a_report_outlives_the_models_last_thousand_steps(model):
    handle = dc.request("a")
    with handle:
        draw(model)
    steps = handle.report.steps
    for _ in range(MAX_STEPS_KEPT // NUM_STEPS):
        draw(model, 1)
    assert "a" not in {step.request for step in dc.summary(model).steps}
    assert handle.report.steps == steps and len(steps) == NUM_STEPS


@pytest.mark.parametrize("enters", ["once", "at every step"])
@pytest.mark.parametrize("runs", ["here", "copied contexts", "another thread each"])
def test_streams_in_turn(model, enters, runs):
    """The settings of each hold for its own steps, and what comes between is nobody's."""

    def steps_of(handle, seed):
        steps = denoise(model, seed)
        if enters == "once":
            yield from stream(handle, steps)
            return
        for _ in range(NUM_STEPS):
            with handle:
                latents = next(steps)
            yield latents

    def advance(steps):
        if runs == "here":
            return next(steps)
        run = contextvars.copy_context().run if runs == "copied contexts" else lambda f, s: f(s)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run, next, steps).result()

    cached, whole = dc.request("cached"), dc.request("whole", enabled=False)
    between = denoise(model, 7)
    turns = [steps_of(cached, 0), steps_of(whole, 1)]
    for _ in range(NUM_STEPS):
        latents = [advance(steps) for steps in turns]
        next(between)
    for steps in turns:
        steps.close()
    expected, hits = alone(model)
    assert (decisions(cached), decisions(whole)) == (hits, [False] * NUM_STEPS)
    torch.testing.assert_close(latents[0], expected)
    own = [(label, hit) for label, hit in decided(model, 4 * NUM_STEPS) if label.startswith("#")]
    assert [hit for _, hit in own] == alone(model, 7)[1]


def test_closing_leaves_the_thread_to_nobody(model):
    """An exception at each step, a stream that is dropped, one that another context closes."""
    for num_steps in range(1, NUM_STEPS):
        handle = dc.request(("a", num_steps), enabled=False)
        steps = stream(handle, denoise(model))
        for _ in range(num_steps):
            next(steps)
        if num_steps % 3 == 0:
            contextvars.copy_context().run(steps.close)
        elif num_steps % 3 == 1:
            with pytest.raises(KeyError):
                steps.throw(KeyError)
        del steps
        gc.collect()
        draw(model, 1)
        labels = {label for label, _ in decided(model, NUM_STEPS)}
        assert len(labels) == 1 and next(iter(labels)).startswith("#")


def test_an_executor_gets_the_request_by_bind(model):
    handle = dc.request("a")

    async def serve():
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, handle.bind(draw), model, 0)

    expected, hits = alone(model)
    torch.testing.assert_close(asyncio.run(serve()), expected)
    assert decisions(handle) == hits


@pytest.mark.parametrize("kind", ["generator", "coroutine", "async generator"])
def test_what_is_bound_keeps_its_kind(model, kind):
    handle = dc.request("a")

    async def coroutine():
        return await asyncio.to_thread(draw, model)

    async def generate():
        for latents in denoise(model):
            yield latents
            await asyncio.sleep(0)

    async def last_of(values):
        async for value in values:
            last = value
        return last

    if kind == "generator":
        (*_, latents) = handle.bind(denoise)(model)
    elif kind == "coroutine":
        latents = asyncio.run(handle.bind(coroutine)())
    else:
        latents = asyncio.run(last_of(handle.bind(generate)()))
    expected, hits = alone(model)
    torch.testing.assert_close(latents, expected)
    assert decisions(handle) == hits
    assert handle.bind(denoise).__name__ == "denoise"


def test_what_is_sent_into_a_bound_generator_arrives(model):
    def echo():
        got = yield 0
        try:
            yield got
        except KeyError:
            yield "caught"

    async def echo_async():
        got = yield 0
        try:
            yield got
        except KeyError:
            yield "caught"

    async def use():
        steps = dc.request("a").bind(echo_async)()
        return [await anext(steps), await steps.asend(1), await steps.athrow(KeyError)]

    steps = dc.request("a").bind(lambda: echo())()
    assert [next(steps), steps.send(1), steps.throw(KeyError)] == [0, 1, "caught"]
    assert asyncio.run(use()) == [0, 1, "caught"]
    assert inspect.iscoroutinefunction(dc.request("a").bind(use))


def test_ending_frees_and_says_what(model):
    handle, other = dc.request("a"), dc.request("b")
    steps, others = stream(handle, denoise(model)), stream(other, denoise(model, 1))
    for _ in range(4):
        next(steps), next(others)
    nbytes = dc.summary(model).state_nbytes
    assert handle.end() == (1, nbytes // 2)
    assert dc.summary(model).state_nbytes == nbytes // 2
    assert handle.end() == (0, 0)
    # Its worker, which doesn't know yet, leaves nothing; the other goes on as alone.
    for _ in range(4):
        next(steps), next(others)
        assert dc.summary(model).state_nbytes == nbytes // 2
    assert decisions(handle)[4:] == [False] * 4
    assert decisions(other) == alone(model, 1)[1][:8]
    again = dc.request("a")
    with again:
        draw(model)
    assert decisions(again) == alone(model)[1]


def test_reset_says_what_it_freed(model):
    handle = dc.request("a")
    steps = stream(handle, denoise(model))
    for _ in range(4):
        next(steps)
    nbytes = dc.summary(model).state_nbytes
    assert nbytes > 0
    assert dc.reset(model, "unknown") == (0, 0)
    freed = dc.reset(model, "a")
    assert (freed.num_tracks, freed.nbytes) == (1, nbytes)
    assert dc.reset(model) == (0, 0)
    next(steps)
    assert dc.summary(model).steps[-1].step == 0


ENDS = []  # What the operator below is to end.


@torch.library.custom_op("handles::ends", mutates_args=())
def ends(h: torch.Tensor) -> torch.Tensor:
    for handle in ENDS:
        handle.end()
    return h.clone()


@ends.register_fake
def _(h):
    return torch.empty_like(h)


class EndingBlock(GatedBlock):
    def forward(self, h, temb, e=None):
        return ends(super().forward(h, temb, e))


@pytest.mark.parametrize("is_first", [True, False])
def test_an_end_in_the_middle_of_a_step_leaves_nothing(is_first):
    """As where the client goes away while a worker is inside of the model."""
    model = compile_reading(EndingBlock)
    handle = dc.request("a")
    steps = stream(handle, denoise(model))
    for _ in range(0 if is_first else 3):
        next(steps)
    ENDS.append(handle)
    try:
        next(steps)
    finally:
        ENDS.clear()
    assert dc.summary(model).state_nbytes == 0
    assert handle.end() == (0, 0)


@pytest.mark.parametrize("key", [None, [1], {"a": 1}, ("a", []), ToBeMissed(), torch.ones(2)])
def test_a_key_that_cant_be_one_is_refused_where_it_is_given(key):
    seen = "None" if key is None else type(key).__name__
    with pytest.raises(TypeError, match=seen):
        dc.request(key)


@pytest.mark.parametrize("name", ["max_idle_seconds", "max_state_bytes"])
def test_bounds_are_those_of_all_requests(name):
    with pytest.raises(dc.InvalidConfig, match=f"{name} is for all requests of a model together"):
        dc.request("a", **{name: 1})


def test_a_worker_of_an_ended_request_leaves_the_next_of_its_name_alone(model):
    """Cancelled and asked for again, under the same text."""
    text = toy_inputs(0.0)["encoder_hidden_states"]
    first, second = dc.request("a"), dc.request("a")
    late = stream(first, denoise(model, 0, text))
    for _ in range(3):
        next(late)
    first.end()
    for _ in itertools.zip_longest(stream(second, denoise(model, 1, text)), late):
        pass
    assert decisions(second) == alone(model, 1, text)[1]
    assert [step.request for step in first.report.steps] == ["a"] * len(first.report.steps)


def test_two_requests_from_one_noise_are_two(model):
    """As where somebody compares settings."""
    texts = [toy_inputs(0.0, seed=seed)["encoder_hidden_states"] for seed in range(2)]
    noise, handles = (
        toy_inputs(90.0)["hidden_states"],
        [dc.request(name) for name in ("one", "two")],
    )
    for i in range(4):
        for handle, text in zip(handles, texts, strict=True):
            with handle, torch.no_grad():
                model(noise * (1 - 0.01 * i) if i else noise, torch.full((2,), 90.0 - 9 * i), text)
    nbytes = dc.summary(model).state_nbytes
    assert handles[0].end() == (1, nbytes // 2)
    assert dc.summary(model).state_nbytes == nbytes // 2


@pytest.mark.parametrize("is_kept", [True, False])
def test_others_that_begin_before_the_last_step(model, is_kept):
    """Whoever has the handle may go on; else an image that looks whole is taken for over."""
    text = toy_inputs(0.0)["encoder_hidden_states"]
    dc.configure(model, residual_diff_threshold=1.0)
    handle, steps = dc.request("a"), denoise(model, 0, text, stride=10.0)
    for _ in range(NUM_STEPS - 1):
        with handle:
            next(steps)
    if not is_kept:
        del handle
    for name in "bc":
        with dc.request(name):
            next(denoise(model, ord(name), text))
    with dc.request("a") as again:
        next(steps)
    assert decisions(again) == [is_kept]


def test_requests_of_which_nothing_is_held_are_bounded_by_number(model):
    text, given = toy_inputs(0.0)["encoder_hidden_states"], toy_inputs(90.0)
    for key in range(MAX_IDLE + 50):
        with dc.request(key, enabled=False), torch.no_grad():
            model(given["hidden_states"], given["timestep"], text)
    assert dc.summary(model).num_branches <= MAX_IDLE + 1


def test_threads_that_lose_their_state_to_each_other(model):
    """Many names under one text, all of which are forgotten at every step of another."""
    dc.configure(model, max_idle_seconds=0)
    text = toy_inputs(0.0)["encoder_hidden_states"]
    draw(model, 0, text)

    def serve(key):
        with dc.request(key):
            return draw(model, key, text)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(serve, range(64)))) == 64
    finally:
        sys.setswitchinterval(interval)
    dc.reset(model)
    assert (dc.summary(model).state_nbytes, dc.summary(model).num_branches) == (0, 0)


def test_what_waits_too_long_is_forgotten(model):
    """By any step of the model; what waits less goes on, and so do the passes of one request."""
    steps = {name: stream(dc.request(name), denoise(model, i)) for i, name in enumerate("ab")}
    for name in "aabba":
        next(steps[name])
    assert dc.summary(model).num_branches == 2
    dc.configure(model, max_idle_seconds=0)
    nbytes = dc.summary(model).state_nbytes
    next(steps["a"])
    assert dc.summary(model).state_nbytes == nbytes // 2
    dc.configure(model, max_idle_seconds=600)
    next(steps["b"])
    last = dc.summary(model).steps[-1]
    assert last.step == 2 and not last.hit
    assert last.reason == "its state was freed after max_idle_seconds=0"


def test_passes_of_one_request_wait_for_each_other(model, monkeypatch):
    """A step takes longer than any may wait: guidance calls each pass at every second one."""
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    dc.configure(model, max_idle_seconds=15)
    texts = [toy_inputs(0.0, seed=seed)["encoder_hidden_states"] for seed in range(2)]
    given = toy_inputs(90.0)
    for i in range(NUM_STEPS):
        given["timestep"] = torch.full((2,), 90.0 - 9.0 * i)
        with torch.no_grad():
            noise = []
            for text in texts:
                noise.append(model(**{**given, "encoder_hidden_states": text}))
                seconds[0] += 10
        given["hidden_states"] = given["hidden_states"] - 0.02 * noise[0]
    steps = dc.summary(model).steps
    hits = [sum(s.hit for s in steps[branch::2]) for branch in range(2)]
    assert min(hits) >= 2
    assert not [s for s in steps if "max_idle_seconds" in s.reason]


def test_requests_by_name_under_one_prompt_arent_bounded_by_number(model):
    """Fifty in turn, a step each, all under the very same text."""
    text = toy_inputs(0.0)["encoder_hidden_states"]
    handles = [dc.request(i) for i in range(50)]
    streams = [stream(h, denoise(model, i, text)) for i, h in enumerate(handles)]
    for latents in zip(*streams, strict=True):
        last = latents
    for i in range(0, 50, 7):
        expected, hits = alone(model, i, text)
        torch.testing.assert_close(last[i], expected)
        assert decisions(handles[i]) == hits


def num_calls_of_python(function):
    """How many functions run: what it costs, on any machine."""
    count = [0]

    def note(frame, event, arg):
        count[0] += event in ("call", "c_call")

    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count[0]


@pytest.mark.parametrize(
    "is_bounded",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["max_state_bytes", "no bound"],
)
def test_idle_requests_cost_a_step_nothing(model, is_bounded):
    """First steps and later ones, with 5 and with 200 that were given up under texts that live."""
    if is_bounded:
        dc.configure(model, max_state_bytes=2**30)
    texts = [toy_inputs(0.0, seed=seed)["encoder_hidden_states"] for seed in range(20)]
    costs = []
    for num_idle in (5, 200):
        dc.reset(model)
        for i in range(num_idle):
            with dc.request(("idle", i)):
                for _ in denoise(model, i, texts[i % 20], num_steps=2):
                    pass
        steps = stream(dc.request("a"), denoise(model, 999))
        next(steps)  # What is read for the first time.
        dc.reset(model, "a")
        steps = stream(dc.request("a"), denoise(model, 1000))
        costs.append([num_calls_of_python(lambda steps=steps: next(steps)) for _ in range(5)])
        assert dc.summary(model).num_branches == num_idle + 1
    few, many = costs
    assert all(b <= 1.1 * a for a, b in zip(few, many, strict=True)), costs


@dataclass(frozen=True)
class Job:
    seed: int
    text: torch.Tensor
    negative: torch.Tensor | None
    num_steps: int
    settings: dict
    cancelled_at: int | None

    def steps(self, model):
        return denoise(model, self.seed, self.text, self.num_steps, negative=self.negative)


def mixed_jobs(num_jobs):
    rng = random.Random(0)
    texts = [toy_inputs(0.0, seed=seed)["encoder_hidden_states"] for seed in range(3)]
    negative = toy_inputs(0.0, seed=9)["encoder_hidden_states"]
    kinds = [{}, {"enabled": False}, {"Fn_compute_blocks": 2}, {"residual_diff_threshold": 0.4}]
    kinds += [{"preset": "quality"}, {"preset": "fast"}]
    return [
        Job(
            seed=i,
            text=rng.choice(texts),
            negative=rng.choice([None, negative]),
            num_steps=rng.choice([5, 8, NUM_STEPS]),
            settings=rng.choice(kinds),
            cancelled_at=rng.choice([2, 4, None, None]),
        )
        for i in range(num_jobs)
    ]


def test_many_at_once(model):
    """64 requests over 8 threads, with texts, guidance, numbers of steps, settings and cancels of
    their own: what is finished is what it is alone, and nothing is left."""
    jobs = mixed_jobs(64)
    draw(model)

    def serve(job, name, until=None):
        handle = dc.request(name, **job.settings)
        (*_, latents) = itertools.islice(stream(handle, job.steps(model)), until)
        handle.end()
        return latents, decisions(handle)

    with ThreadPoolExecutor(8) as pool:
        served = list(pool.map(lambda job: serve(job, job.seed, job.cancelled_at), jobs))
    for job, (latents, hits) in zip(jobs, served, strict=True):
        if job.cancelled_at is None:
            expected, expected_hits = serve(job, "alone")
            torch.testing.assert_close(latents, expected)
            assert hits == expected_hits
    assert {len(hits) for _, hits in served} >= {5, 8, 10, 16, 20}
    gc.collect()
    assert dc.summary(model).state_nbytes == 0
    assert threading.active_count() < 20
