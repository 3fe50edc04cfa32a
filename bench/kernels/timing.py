"""How long the forms of a case take on the device, beside a copy of as many bytes.

A round times each form once, in turn, so that a slow moment of the machine falls on all of them.
The calls go through several sets of tensors, too many for the caches. On a GPU many calls are
captured into one CUDA graph, so that nothing of the host is measured.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch

from bench.kernels.cases import Case
from bench.kernels.forms import OP, Form, Inputs, make_inputs

COPY = "copy"
# Sets of tensors are together so many times larger than the last cache.
_CACHE_TIMES = 3
_MAX_SETS = 256
_CPU_CACHE_BYTES = 2**25
_MAX_SET_BYTES = 24 * 2**30
# What one timing takes on a GPU at least, so that its clock doesn't matter.
_MIN_TIMED_BYTES = 8 * 2**30

Timer = Callable[[], float]


def make_sets(case: Case, device: torch.device) -> list[list[torch.Tensor]]:
    """Tensors for many calls in a row."""
    wanted = -(-_CACHE_TIMES * _cache_bytes(device) // case.nbytes)
    affordable = max(1, _MAX_SET_BYTES // case.nbytes)
    num_sets = max(1, min(wanted, affordable, _MAX_SETS))
    return [make_inputs(case, device, seed) for seed in range(num_sets)]


def _cache_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return _CPU_CACHE_BYTES
    size: int = torch.cuda.get_device_properties(device).L2_cache_size
    return size


def time_forms(
    case: Case, forms: Mapping[str, Form], sets: Sequence[Inputs], num_rounds: int
) -> dict[str, list[float]]:
    """Seconds a call, round by round, of a copy and of each form."""
    device = sets[0][0].device
    timers = {COPY: _copy_timer(case, device, len(sets))}
    for name, form in forms.items():
        timers[name] = _timer(case, name, form, sets)
    for timer in timers.values():
        timer()
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(num_rounds):
        for name, timer in timers.items():
            seconds[name].append(timer())
    return seconds


def _copy_timer(case: Case, device: torch.device, num_sets: int) -> Timer:
    """A copy reads as many bytes as it writes: half of them each."""
    half = case.nbytes // 2
    sets = [
        [torch.zeros(half, dtype=torch.uint8, device=device) for _ in range(2)]
        for _ in range(num_sets)
    ]
    return _timer(case, COPY, lambda source, target: target.copy_(source), sets)


def _timer(case: Case, name: str, form: Form, sets: Sequence[Inputs]) -> Timer:
    device = sets[0][0].device
    calls = [lambda given=given: form(*given) for given in sets]
    if device.type == "cpu":
        return _cpu_timer(calls)
    num_calls = max(len(sets), -(-_MIN_TIMED_BYTES // case.nbytes))
    num_calls = min(num_calls, 8 * _MAX_SETS)
    # The table of `block_diff` is copied from the host, which a graph can't repeat.
    if case.op == "block_diff" and name == OP:
        return _stream_timer(calls, num_calls)
    return _graph_timer(calls, num_calls)


def _cpu_timer(calls: Sequence[Callable[[], object]]) -> Timer:
    def seconds_a_call() -> float:
        start = time.process_time()
        for call in calls:
            call()
        return (time.process_time() - start) / len(calls)

    return seconds_a_call


def _graph_timer(calls: Sequence[Callable[[], object]], num_calls: int) -> Timer:
    """Times replays of one graph of many calls. Results live until their set comes round again, as
    else all would be written to the same place, which stays in the cache."""
    for call in calls:
        call()
    graph, alive = torch.cuda.CUDAGraph(), deque[object](maxlen=len(calls))
    with torch.cuda.graph(graph):
        for i in range(num_calls):
            alive.append(calls[i % len(calls)]())
    return lambda: _elapsed(graph.replay) / num_calls


def _stream_timer(calls: Sequence[Callable[[], object]], num_calls: int) -> Timer:
    """Times the calls as they are, with what the host takes where that is longer."""

    def run() -> None:
        for i in range(num_calls):
            calls[i % len(calls)]()

    return lambda: _elapsed(run) / num_calls


def _elapsed(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
