"""The server over real HTTP: its pictures are those drawn alone, whoever else asks or goes away."""

import asyncio
import io
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import ClientDisconnect

import dit_cachegraph as dc
from dit_cachegraph.demo.flux_scenes import draw, embed, load_pipeline, shipped_prompts
from dit_cachegraph.serving.app import create_app
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.embedded import words_of
from dit_cachegraph.serving.job import Job
from dit_cachegraph.serving.limits import Limits
from dit_cachegraph.serving.pool import Pool
from dit_cachegraph.serving.studio import Painter, why_not_that_size
from support.serving_runs import (
    PROMPT,
    TIMEOUT,
    NanStudio,
    WatchedStudio,
    served,
    shorten,
    until,
)

pytestmark = pytest.mark.e2e
NUM_STEPS = 8
LONG = 100


def mixed_asks(count):
    rng = random.Random(0)
    presets = ["balanced", "fast", "quality", "uncached", "draft"]
    return [
        Ask(
            prompt=rng.choice(shipped_prompts()),
            preset=presets[i % 5],
            num_steps=rng.choice([4, NUM_STEPS, 14]),
            seed=i,
        )
        for i in range(count)
    ]


def fields_of(ask):
    return {
        "prompt": ask.prompt,
        "preset": ask.preset,
        "num_steps": ask.num_steps,
        "seed": ask.seed,
    }


def test_pictures_are_those_drawn_alone(client, studio):
    asks = mixed_asks(16)
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda ask: client.generate(**fields_of(ask)), asks))
    for ask, answer in zip(asks, answers, strict=True):
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        assert answer.body == studio.alone(ask)
        reused, computed = (
            int(answer.headers[f"x-steps-{decided}"]) for decided in ("reused", "computed")
        )
        assert reused + computed == ask.num_steps
        assert (reused == 0) == (ask.preset == "uncached") or ask.num_steps < 14
    assert len({answer.body for answer in answers}) == len(asks)
    assert dc.summary(studio.pipe).state_nbytes == 0


def test_uncached_is_the_plain_pipeline(client, studio):
    ask = Ask(prompt=PROMPT, preset="uncached", num_steps=NUM_STEPS)
    answer = client.generate(**fields_of(ask))
    plain = load_pipeline()
    shorten(plain)
    drawn = draw(plain, embed([PROMPT]), num_steps=NUM_STEPS)[0]
    pixels = (drawn.clamp(-1, 1) + 1) * 127.5
    got = torch.from_numpy(np.array(Image.open(io.BytesIO(answer.body)))).permute(2, 0, 1)
    assert (got - pixels).abs().max() <= 0.51


def test_a_stream_tells_each_step_and_then_the_picture(client, studio):
    with client.stream(num_steps=14, seed=3) as events:
        told = list(events)
    names = [name for name, _ in told if name != "waiting"]
    assert names == ["queued", *["step"] * 14, "done"]
    steps = [data for name, data in told if name == "step"]
    assert [data["step"] for data in steps] == list(range(14))
    assert {len(data["decisions"]) for data in steps} == {1}
    done = told[-1][1]
    hits = sum(data["decisions"][0]["hit"] for data in steps)
    assert (done["num_hits"], done["num_computed"]) == (hits, 14 - hits) and hits > 0
    assert all(data["decisions"][0]["reason"] for data in steps)
    assert done["share_of_work"] < 1
    assert len({data["preview"] for data in steps}) == 14
    assert steps[-1]["preview"] == done["picture"]
    assert done["picture"].startswith("data:image/png;base64,")
    alone = client.generate(num_steps=14, seed=3)
    assert int(alone.headers["x-steps-reused"]) == hits


def test_a_draft_is_told_how_many_steps_there_are(client):
    """Untold, it computes every third."""
    with client.stream(num_steps=20, preset="draft") as events:
        steps = [data["decisions"][0]["hit"] for name, data in events if name == "step"]
    assert [i for i, is_hit in enumerate(steps) if not is_hit] == [0, 3, 6, 9, 13, 17, 19]


def test_a_request_is_cancelled_in_the_middle(client, studio):
    before = studio.num_calls
    with client.stream(num_steps=LONG) as events:
        _, queued = next(events)
        next(event for event in events if event[0] == "step")
        assert client.ask("DELETE", f"/requests/{queued['id']}").json == {"cancelled": queued["id"]}
        name, data = list(events)[-1]
    assert (name, data) == ("error", {"error": "the request was cancelled", "status": 409})
    assert 1 <= studio.num_calls - before < LONG
    until(lambda: dc.summary(studio.pipe).state_nbytes == 0)
    again = client.ask("DELETE", f"/requests/{queued['id']}")
    assert (again.status, again.json) == (404, {"error": "no request of that id is under way"})


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_ends_its_request(client, studio, is_streamed):
    def num_left():
        return client.metrics().get(("dit_cachegraph_http_requests_total", "left"), 0)

    before, left_before = studio.num_calls, num_left()
    if is_streamed:
        with client.stream(num_steps=LONG) as events:
            next(event for event in events if event[0] == "step")
    else:
        connection = client.connect()
        body = '{"prompt": "a red circle", "num_steps": 100}'
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        until(lambda: studio.num_calls > before)
        connection.close()
    until(lambda: num_left() == left_before + 1)
    until(lambda: dc.summary(studio.pipe).state_nbytes == 0)
    assert 1 <= studio.num_calls - before < LONG


def test_metrics_equal_the_summary(client, studio):
    for preset in ("fast", "uncached"):
        assert client.generate(num_steps=14, preset=preset).status == 200
    found, report = client.metrics(), dc.summary(studio.pipe)
    (model,) = {labels[1] for name, *labels in found if name.endswith("step_seconds_count")}
    steps = "dit_cachegraph_step_seconds_count"
    assert found[steps, "reused", model] == report.num_hits > 0
    assert found[steps, "computed", model] == report.num_computed
    assert found["dit_cachegraph_blocks_total", model, "run"] == report.num_blocks_run
    assert found["dit_cachegraph_calls_outside_total",] == report.num_outside == 0
    assert found["dit_cachegraph_compiles_total",] == report.num_compiles
    assert found["dit_cachegraph_waiting",] == 0
    taken = found["dit_cachegraph_http_seconds_count",]
    outcomes = {k[1]: v for k, v in found.items() if k[0] == "dit_cachegraph_http_requests_total"}
    assert taken == sum(outcomes.get(name, 0) for name in ("drawn", "left", "409"))


def test_cold_requests_wait_and_compile_once():
    torch._dynamo.reset()
    studio = WatchedStudio()
    with served(studio) as client, ThreadPoolExecutor(4) as clients:
        not_yet = client.ask("GET", "/readyz")
        assert client.ask("GET", "/healthz").status == 200
        answers = list(clients.map(lambda seed: client.generate(num_steps=4, seed=seed), range(4)))
        assert [answer.status for answer in answers] == [200] * 4
        assert not_yet.status == 503 and not_yet.json["ready"] is False
        assert client.ask("GET", "/readyz").json["ready"] is True
    assert dc.summary(studio.pipe).num_compiles == 1


def test_readiness_is_lost_with_the_cache(client, studio):
    """And comes back with the next call that is cached."""
    with torch.compiler.set_stance("force_eager"):
        studio.alone(Ask(prompt=PROMPT, num_steps=2))
    answer = client.ask("GET", "/readyz")
    assert (answer.status, answer.json["ready"]) == (503, False)
    assert 'the stance "force_eager"' in answer.json["error"]
    assert client.generate(num_steps=2).status == 200
    assert client.ask("GET", "/readyz").status == 200


def test_too_many_are_told_when_to_come_again():
    with served(WatchedStudio(), num_workers=1, limits=Limits(max_waiting=1)) as client:
        client.wait_until_ready()
        with client.stream(num_steps=LONG) as drawn:
            next(event for event in drawn if event[0] == "step")
            with client.stream(num_steps=2) as waits:
                _, queued = next(waits)
                refused = client.generate()
                assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
                assert "1 requests wait already" in refused.json["error"]
                assert client.metrics()["dit_cachegraph_waiting",] == 1
                assert client.ask("DELETE", f"/requests/{queued['id']}").status == 200
                assert list(waits)[-1][1]["status"] == 409
            with client.stream(num_steps=2) as left:
                next(left)
            until(lambda: client.metrics()["dit_cachegraph_waiting",] == 0)
            with client.stream(num_steps=2) as waits:
                assert list(drawn)[-1][0] == list(waits)[-1][0] == "done"


def test_one_that_takes_too_long_is_ended():
    studio = WatchedStudio()
    with served(studio, limits=Limits(request_seconds=0.5, max_steps=100_000)) as client:
        client.wait_until_ready()
        answer = client.generate(num_steps=100_000)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "wasn't drawn within 0.5 s" in answer.json["error"]
        until(lambda: dc.summary(studio.pipe).state_nbytes == 0)
        # On a loaded machine two steps may take as long: what must be free again is the worker.
        until(lambda: client.generate(num_steps=2).status == 200)


def test_stopping_loses_nothing_that_was_taken():
    with ThreadPoolExecutor(6) as clients:
        with served(WatchedStudio()) as client:
            client.wait_until_ready()
            asked = [clients.submit(client.generate, num_steps=30, seed=i) for i in range(6)]
            until(lambda: client.metrics()["dit_cachegraph_waiting",] == 4)
        assert [future.result().status for future in asked] == [200] * 6
    with pytest.raises(ConnectionRefusedError):
        client.generate()


def test_a_client_that_is_gone_before_the_first_event_ends_its_request():
    """As a server tells it that raises where it can't send (ASGI 2.4)."""
    app = create_app(WatchedStudio(), num_workers=1, request_log=io.StringIO())
    body = json.dumps({"prompt": PROMPT, "num_steps": LONG, "stream": True}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        raise OSError("gone")

    async def ask():
        async with app.router.lifespan_context(app):
            pool = app.state.node.pool
            with pytest.raises(ClientDisconnect):
                await app(scope, receive, send)
            num_waiting = pool.num_waiting
            await asyncio.to_thread(pool.wait_until_warm)
            return num_waiting

    assert asyncio.run(ask()) == 0


def test_stopping_at_once_draws_no_further():
    pool = Pool(WatchedStudio(), Limits(), 1, lambda target: None)
    pool.start()
    pool.wait_until_warm()
    ask = Ask(prompt=PROMPT, num_steps=100_000)
    jobs = [Job(ask, asyncio.new_event_loop(), ask.num_steps) for _ in range(2)]
    for job in jobs:
        pool.submit(job)
    until(lambda: pool.num_waiting == 1)
    assert pool.stop()
    assert all(job.handle.has_ended for job in jobs)
    for job in jobs:
        job.loop.close()


def test_what_needs_the_api_key():
    with served(WatchedStudio(), api_key="sesame") as client:
        client.wait_until_ready()
        for method, path in (("GET", "/metrics"), ("DELETE", "/requests/a"), ("POST", "/generate")):
            for given in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Bearer sesame2"},
                {"Authorization": "sesame"},
                {"Authorization": "Basic sesame"},
            ):
                answer = client.ask(method, path, **given)
                assert answer.status == 401 and "API key" in answer.json["error"]
        assert client.ask("GET", "/").status == 200
        for scheme in ("Bearer", "bearer", "BEARER "):
            given = f"{scheme} sesame"
            assert client.ask("GET", "/metrics", Authorization=given).status == 200
        unknown = client.ask("DELETE", "/requests/a", Authorization="Bearer sesame")
        assert unknown.status == 404


def test_an_api_key_of_any_letters():
    """They are sent as UTF-8, which a header's reader takes for Latin-1."""
    with served(WatchedStudio(), api_key="sésame") as client:
        for given, status in (("sésame", 200), ("sesame", 401)):
            sent = f"Bearer {given}".encode().decode("latin-1")
            assert client.ask("GET", "/metrics", Authorization=sent).status == status


def test_a_model_that_cant_be_loaded_is_said():
    class Broken(WatchedStudio):
        def load(self):
            raise OSError("no such weights")

    with served(Broken()) as client:
        until(lambda: "no such weights" in client.ask("GET", "/readyz").json["error"])
        answer = client.generate()
        assert answer.status == 503 and "no such weights" in answer.json["error"]
        assert client.ask("GET", "/healthz").status == 200


def test_what_is_asked_while_it_loads_is_told_how_far_it_is():
    may_load = threading.Event()

    class Slow(WatchedStudio):
        def load(self):
            assert may_load.wait(TIMEOUT)
            return super().load()

    with served(Slow()) as client, client.stream(num_steps=2) as events:
        assert next(events)[0] == "queued"
        name, data = next(events)
        assert (name, data["stage"], data["num"]) == ("waiting", "loading the model", 1)
        assert client.ask("GET", "/readyz").json["stage"] == "loading the model"
        may_load.set()
        assert list(events)[-1][0] == "done"


def test_what_no_number_tells_is_null():
    """A page parses each event, and NaN is none of JSON."""
    with served(NanStudio(), num_workers=1) as client:
        client.wait_until_ready()
        with client.stream(num_steps=4) as drawn:
            events = list(drawn)
    told = [decision for name, data in events if name == "step" for decision in data["decisions"]]
    assert len(told) == 4 and not any(decision["hit"] for decision in told)
    assert {decision["error"] for decision in told} == {None}
    assert events[-1][0] == "done"


def test_one_that_fails_is_said_and_the_next_is_drawn():
    class Fails(Painter):
        def __init__(self, painter):
            self.painter = painter

        def paint(self, ask, on_step):
            def fail(preview):
                if (ask.seed, preview.step) == (13, 1):
                    raise ValueError("of the model")
                on_step(preview)

            picture = self.painter.paint(ask, fail)
            # There is no PNG of floats.
            return picture.convert("F") if ask.seed == 14 else picture

    class Studio(WatchedStudio):
        def painter(self):
            return Fails(super().painter())

    studio = Studio()
    with served(studio, num_workers=1) as client:
        client.wait_until_ready()
        for num_failed, seed in enumerate((13, 14), 1):
            answer = client.generate(num_steps=4, seed=seed)
            assert answer.status == 500
            assert answer.json == {"error": "the model failed; the server's log has why"}
            assert dc.summary(studio.pipe).state_nbytes == 0
            assert client.generate(num_steps=4, seed=12).status == 200
            assert client.metrics()["dit_cachegraph_http_requests_total", "500"] == num_failed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PROMPT, "large framed black diamond right teal"),
        ("A RED circle!", "medium plain red circle center beige"),
        ("please draw two rings, or one ring", "medium plain red ring center beige"),
        ("teal", "medium plain red circle center teal"),
        ("a cat", None),
        ("", None),
    ],
)
def test_any_text_comes_to_words_of_the_model(text, words):
    assert words_of(text) == (None if words is None else tuple(words.split()))


class RoundingStudio(WatchedStudio):
    """Draws 64 x 64 whatever it is asked for, as a pipeline rounds a size to its patches."""

    sizes = ((100, 64),)

    def samples(self) -> list[Ask]:
        return [Ask(prompt=PROMPT, width=width, height=height) for width, height in self.sizes]


def test_a_size_that_the_model_rounds_isnt_served():
    with served(RoundingStudio()) as client:
        until(lambda: "failed" in client.ask("GET", "/readyz").json["stage"])
        answer = client.generate(width=100, height=64)
        assert answer.status == 503
        assert "asked for 100 x 64 it draws 64 x 64" in answer.json["error"]


def test_a_size_where_none_was_said():
    sentence = why_not_that_size((), Ask(prompt=PROMPT, width=100, height=64))
    assert sentence is not None and "names none, is" in sentence
    assert why_not_that_size((), Ask(prompt=PROMPT)) is None
