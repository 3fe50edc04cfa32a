"""The server under load: what is asked of it at ten times its capacity, and what becomes of that.

    python -m bench.serve_load                           two minutes, after it is warm
    python -m bench.serve_load --seconds 10 --json load.json

Pictures are first drawn with nobody else about, then asked for at a fixed rate by clients of this
machine, over the loopback, until the time is over. Each answer is a picture, which must be equal to
the one that was drawn alone, or a 503 that says when to come again. It ends with 1 where one is
anything else, or memory grew.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from bench.common.machine import this_machine
from dit_cachegraph.demo.flux_scenes import shipped_prompts

NUM_CLIENTS = 64  # More than are drawn and wait together, so that there are always some who ask.
MAY_GROW = 1.05
Ask = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and how long it took."""

    status: int
    body: bytes
    seconds: float


@dataclass(slots=True)
class LoadResult:
    """`statuses` of all answers, how many of the pictures were `num_wrong`, the seconds of each
    that was drawn, and the server's memory, in bytes, each second."""

    asked_a_second: float
    statuses: Counter[int] = field(default_factory=Counter)
    num_wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What may not be, a sentence each."""
        told = [f"{n} answers of {s}" for s, n in self.statuses.items() if s not in (200, 503)]
        if self.num_wrong:
            told.append(f"{self.num_wrong} pictures differ from those drawn alone")
        if not self.seconds:
            told.append("no picture was drawn")
        if len(self.memory) >= 8 and self.growth > MAY_GROW:
            told.append(f"memory grew {self.growth:.2f} times")
        return told

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return {
            "asked_a_second": self.asked_a_second,
            "statuses": dict(self.statuses),
            "num_wrong": self.num_wrong,
            "p50_seconds": self.percentile(50),
            "p99_seconds": self.percentile(99),
            "memory": self.memory,
        }

    @property
    def growth(self) -> float:
        """Memory in the last quarter over that in the second."""
        quarter = len(self.memory) // 4
        early, late = self.memory[quarter : 2 * quarter], self.memory[-quarter:]
        return statistics.median(late) / statistics.median(early)

    def percentile(self, percent: int) -> float:
        """Seconds within which so many of the pictures came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def mixed_asks(num_asks: int) -> list[Ask]:
    """Prompts, presets, steps and seeds of each kind."""
    rng = random.Random(0)
    presets = itertools.cycle(("balanced", "fast", "quality", "uncached"))
    prompts = rng.sample(shipped_prompts(), num_asks)
    return [
        {"prompt": prompt, "preset": preset, "num_steps": rng.choice((8, 14, 28)), "seed": seed}
        for seed, (prompt, preset) in enumerate(zip(prompts, presets, strict=False))
    ]


def ask(port: int, what: Ask) -> Answer:
    """One request of the server at a port of this machine."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/generate", json.dumps(what), headers)
        got = connection.getresponse()
        return Answer(got.status, got.read(), time.perf_counter() - start)


def capacity(port: int, asks: Sequence[Ask], num_workers: int) -> float:
    """Pictures a second with each worker busy and nobody who waits."""
    start = time.perf_counter()
    with ThreadPoolExecutor(num_workers) as clients:
        answers = list(clients.map(lambda what: ask(port, what), asks))
    assert {answer.status for answer in answers} == {200}
    return len(asks) / (time.perf_counter() - start)


def load(
    port: int, expected: Sequence[tuple[Ask, bytes]], *, rate: float, seconds: float, process: int
) -> LoadResult:
    """Ask `rate` times a second, for so many seconds; `process` is the server's."""
    result, lock = LoadResult(rate), threading.Lock()
    start, numbers = time.monotonic(), itertools.count()

    def be_a_client(_: int) -> None:
        while (due := start + next(numbers) / rate) < start + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() > start + seconds:
                return
            what, picture = random.choice(expected)
            answer = ask(port, what)
            with lock:
                result.statuses[answer.status] += 1
                if answer.status == 200:
                    result.num_wrong += answer.body != picture
                    result.seconds.append(answer.seconds)

    with ThreadPoolExecutor(NUM_CLIENTS + 1) as clients:
        done = [clients.submit(be_a_client, i) for i in range(NUM_CLIENTS)]
        while time.monotonic() < start + seconds:
            result.memory.append(psutil.Process(process).memory_info().rss)
            time.sleep(min(1.0, seconds / 10))
        for client in done:
            client.result()
    return result


@contextlib.contextmanager
def server(num_workers: int) -> Iterator[tuple[int, int]]:
    """The server as a process: its port and its id, once it is warm."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "dit_cachegraph", "serve", "--port", str(port)]
    command += ["--workers", str(num_workers)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"the server ended before it was ready: {' '.join(command)}")
            time.sleep(1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(120)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(ConnectionRefusedError):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def told(result: LoadResult) -> str:
    """The figures as text."""
    drawn, refused = result.statuses[200], result.statuses[503]
    return (
        f"asked {result.asked_a_second:.1f} times a second: {drawn} drawn, {refused} told 503, "
        f"{result.num_wrong} wrong; p50 {result.percentile(50):.2f} s, "
        f"p99 {result.percentile(99):.2f} s; memory {result.memory[-1] / 2**20:.0f} MiB, "
        f"{result.growth:.3f} times that of the second quarter"
    )


def main() -> int:
    """Exit code 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--times-capacity", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    asks = mixed_asks(16)
    with server(args.workers) as (port, process):
        expected = [(what, ask(port, what).body) for what in asks]
        rate = args.times_capacity * capacity(port, asks, args.workers)
        result = load(port, expected, rate=rate, seconds=args.seconds, process=process)
    print(told(result))
    faults = result.faults()
    for fault in faults:
        print("fault:", fault)
    if args.json is not None:
        found = {"machine": asdict(this_machine()), **result.to_dict()}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
