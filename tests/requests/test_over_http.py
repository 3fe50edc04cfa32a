"""Pictures over real HTTP: previews streamed as they fall, clients that go away."""

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import dit_cachegraph as dc
from support.toy_images import NUM_STEPS, compile_reading, denoise


@pytest.fixture(scope="module")
def model():
    return compile_reading()


def previews(model, job) -> Iterator[dict]:
    """What a server writes: a `with` around its `yield`s, and an end whatever happens."""
    handle = dc.request(job["id"], **job["settings"])
    try:
        with handle:
            for latents in denoise(model, job["seed"]):
                hits = [step.hit for step in handle.report.steps]
                yield {"latents": latents.flatten().tolist(), "hits": hits}
    finally:
        handle.end()


class Handler(BaseHTTPRequestHandler):
    model: torch.nn.Module
    pool: ThreadPoolExecutor

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        # Each preview is made by whichever worker is free.
        made = previews(self.model, job)
        try:
            while (preview := self.pool.submit(next, made, None).result()) is not None:
                self.wfile.write(json.dumps(preview).encode() + b"\n")
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            pass  # The client is gone.
        finally:
            made.close()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(model):
    with ThreadPoolExecutor(3) as pool:
        handler = type("OfModel", (Handler,), {"model": model, "pool": pool})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()  # Waits for the requests under way.


def ask(url, job, num_previews=NUM_STEPS):
    """The previews of a job; fewer than all, and the client goes away."""
    request = urllib.request.Request(url, json.dumps(job).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return [json.loads(response.readline()) for _ in range(num_previews)]


def test_streams_and_clients_that_go_away(model):
    kinds = [{}, {"enabled": False}, {"residual_diff_threshold": 0.5}]
    jobs = [{"id": i, "seed": i, "settings": kinds[i % 3]} for i in range(12)]
    alone = [list(previews(model, job)) for job in jobs]
    with served(model) as url, ThreadPoolExecutor(6) as clients:
        counts = [4 if i % 4 == 3 else NUM_STEPS for i in range(12)]
        streamed = list(clients.map(ask, [url] * 12, jobs, counts))
    for seen, expected, count in zip(streamed, alone, counts, strict=True):
        assert [s["hits"] for s in seen] == [e["hits"] for e in expected[:count]]
        for s, e in zip(seen, expected, strict=False):
            torch.testing.assert_close(torch.tensor(s["latents"]), torch.tensor(e["latents"]))
    totals = [sum(previews[-1]["hits"]) for previews in alone]
    assert totals[0] >= 2 and totals[1] == 0 and totals[2] > totals[0]
    assert dc.summary(model).state_nbytes == 0
