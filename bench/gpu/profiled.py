"""What one step does on the device, and what of the host it waits in."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

NUM_SHOWN = 15
# What the host calls to wait: each is a place where the device may run dry. For the whole device
# waits the profiler itself.
WAITS = ("cudaEventSynchronize", "cudaStreamSynchronize")


@dataclass(frozen=True, slots=True)
class Profiled:
    """`kernels`: the longest of them, with how often they ran and their milliseconds together;
    `num_waits`: calls of the runtime in which the host waited, by name."""

    num_kernels: int
    device_milliseconds: float
    kernels: tuple[tuple[str, int, float], ...]
    num_waits: dict[str, int]


def profiled(call: Callable[[], object], device: torch.device) -> Profiled:
    """One call. On a CPU there are neither kernels nor waits."""
    has_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_device else [])]
    with profile(activities=activities) as found:
        call()
    waits: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    microseconds: Counter[str] = Counter()
    for event in found.events() or []:
        if event.name in WAITS:
            waits[event.name] += 1
        if has_device and event.device_type == torch.autograd.DeviceType.CUDA:
            numbers[event.name] += 1
            microseconds[event.name] += event.self_device_time_total
    longest = [(n, numbers[n], t / 1e3) for n, t in microseconds.most_common(NUM_SHOWN)]
    return Profiled(
        num_kernels=numbers.total(),
        device_milliseconds=microseconds.total() / 1e3,
        kernels=tuple(longest),
        num_waits=dict(waits),
    )
