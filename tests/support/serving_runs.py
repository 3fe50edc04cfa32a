"""The server of the package over real HTTP on the loopback, and a client for it."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import torch
import uvicorn
from diffusers import FluxPipeline
from prometheus_client.parser import text_string_to_metric_families

import dit_cachegraph as dc
from dit_cachegraph.serving.app import create_app
from dit_cachegraph.serving.ask import Ask
from dit_cachegraph.serving.embedded import EmbeddedStudio
from dit_cachegraph.serving.head_timeout import timed_heads
from dit_cachegraph.serving.job import png_of
from dit_cachegraph.serving.limits import Limits

PROMPT = "a large framed black diamond at right on teal"
TIMEOUT = 120


class WatchedStudio(EmbeddedStudio):
    """A third of the embedded model, in eager, for those who look at what it did."""

    def __init__(self) -> None:
        super().__init__("eager")

    def load(self) -> object:
        self.pipe = super().load()
        shorten(self.pipe)
        return self.pipe

    @property
    def num_calls(self) -> int:
        report = dc.summary(self.pipe)
        return report.num_hits + report.num_computed

    def alone(self, ask: Ask) -> bytes:
        """What an ask comes to with nobody else about."""
        handle = dc.request("alone", **ask.settings(self.num_calls_of(ask)))
        with handle:
            picture = self.painter().paint(ask, lambda preview: None)
        handle.end()
        return png_of(picture)


class NanStudio(WatchedStudio):
    """Its model overflows at every step."""

    def load(self) -> object:
        pipe = super().load()
        pipe.transformer.x_embedder.weight.fill_(torch.nan)
        return pipe


class BusyStudio(EmbeddedStudio):
    """It is in torch for good, as in a long compilation."""

    def load(self) -> object:
        while True:
            torch.ones(500, 500) @ torch.ones(500, 500)


def shorten(pipe: FluxPipeline) -> None:
    """Keep a third of the blocks, before the first call."""
    model = pipe.transformer
    model.transformer_blocks = model.transformer_blocks[:1]
    model.single_transformer_blocks = model.single_transformer_blocks[:3]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Speaks to a port of this machine, with a connection for each request."""

    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        with contextlib.closing(self.connect()) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            got = connection.getresponse()
            lower = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, lower, got.read())

    def generate(self, **fields: object) -> Answer:
        body = json.dumps({"prompt": PROMPT, **fields}).encode()
        return self.ask("POST", "/generate", body, Content_Type="application/json")

    @contextlib.contextmanager
    def stream(self, **fields: object) -> Iterator[Iterator[tuple[str, dict]]]:
        """The events of a request, by name, as they come."""
        body = json.dumps({"prompt": PROMPT, "stream": True, **fields})
        with contextlib.closing(self.connect()) as connection:
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            got = connection.getresponse()
            assert got.status == 200, got.read()
            yield events_in(got)

    def metrics(self) -> dict[tuple[str, ...], float]:
        text = self.ask("GET", "/metrics").body.decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def wait_until_ready(self) -> None:
        until(self._is_ready)

    def _is_ready(self) -> bool:
        answer = self.ask("GET", "/readyz")
        assert answer.json["stage"] != "failed", answer.json
        return answer.status == 200


def events_in(lines: http.client.HTTPResponse) -> Iterator[tuple[str, dict]]:
    """What server-sent events say."""
    name = ""
    for line in lines:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value, parse_constant=no_constant)


def no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON: a browser reads none of it")


def until(holds) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def free_port() -> int:
    """One that nobody listens at."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def served(
    studio: EmbeddedStudio,
    *,
    limits: Limits | None = None,
    num_workers: int = 2,
    api_key: str | None = None,
) -> Iterator[Client]:
    """A server in a thread, from its start to its drain."""
    limits = limits or Limits()
    app = create_app(
        studio,
        limits=limits,
        num_workers=num_workers,
        api_key=api_key,
        request_log=io.StringIO(),
    )
    config = uvicorn.Config(
        app,
        port=0,
        http=timed_heads(limits.head_seconds),
        log_level="warning",
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=TIMEOUT,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
