"""Where the host's time goes in a computed step and in a hit, part by part.

    python -m bench.speed.host_parts --depth 6+12 [--frozen]

Three figures are timed, as medians of CPU time: the whole call, Dynamo's guards by themselves, and
the driver, which Dynamo calls. The parts are told by Python's profiler on CPU time, which makes
many short calls look dearer than they are: its shares rank the parts, and the number of Python
calls is exact. Whatever is written in C counts for who called it.
"""

import argparse
import cProfile
import gc
import pstats
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from bench.common.spread import Spread, spread_of
from bench.common.table import table
from bench.common.threads import use_one_thread
from bench.speed.engines import CACHE_SETTINGS, Model, force_decision
from bench.speed.flux import (
    HOST,
    Depth,
    Inputs,
    build_model,
    image_after_image,
    make_image,
    parse_depth,
)
from dit_cachegraph.account.dynamo_records import codes_of
from dit_cachegraph.backend import cachedit

PACKAGE = "dit_cachegraph"
# Of a step of ours; `Inductor` is its generated code with the kernels that it calls.
PARTS: Mapping[str, tuple[str, ...]] = {
    "Inductor": ("/torchinductor_",),
    "around Inductor": ("/torch/_functorch/", "/torch/_inductor/", "/cut/calling.py"),
    "driver": (
        "/runtime/driver.py",
        "/runtime/walk.py",
        "/segments/segment_runner.py",
        "/segments/slots.py",
    ),
    "weights": ("/runtime/weights.py",),
    "whose call it is": (
        f"/{PACKAGE}/requests/",
        f"/{PACKAGE}/retention/",
        f"/{PACKAGE}/scopes.py",
        f"/{PACKAGE}/models.py",
        "/runtime/look.py",
    ),
    "reading": ("/runtime/reading.py", f"/{PACKAGE}/ops.py", "/runtime/injected.py"),
    "decision": ("/runtime/decide.py", "/runtime/agree.py", f"/{PACKAGE}/policy/"),
    "replay": ("/runtime/replay.py",),
    "commit": (
        "/runtime/commit.py",
        "/runtime/step.py",
        f"/{PACKAGE}/step_log.py",
        f"/{PACKAGE}/tally.py",
        f"/{PACKAGE}/later.py",
    ),
    "account": (f"/{PACKAGE}/calls.py", f"/{PACKAGE}/call_log.py"),
    "plan": (f"/{PACKAGE}/planning/", f"/{PACKAGE}/layers.py", f"/{PACKAGE}/config.py"),
}
OTHER = "Dynamo's call, and others"


@dataclass(frozen=True, slots=True)
class PartResult:
    """Of one part: its share of the profiled time, and calls of Python in one step."""

    share: float
    num_calls: float


@dataclass(frozen=True, slots=True)
class HostResult:
    """Of one kind of step: microseconds of CPU time, and its parts."""

    whole: Spread
    driver: Spread
    parts: Mapping[str, PartResult]


@dataclass(slots=True)
class _TimingBackend:
    """The backend, but what it returns is timed."""

    options: Mapping[str, object]
    nanoseconds: list[int] = field(default_factory=list)

    def __call__(
        self, gm: fx.GraphModule, example_inputs: Sequence[torch.Tensor]
    ) -> Callable[..., object]:
        driver = cachedit(gm, example_inputs, options=self.options)

        def run(*args: object) -> object:
            start = time.thread_time_ns()
            result = driver(*args)
            self.nanoseconds.append(time.thread_time_ns() - start)
            return result

        return run


def measure_host(
    depth: Depth, num_rounds: int, *, is_frozen: bool, inner: str = "inductor"
) -> tuple[Spread, dict[str, HostResult]]:
    """Microseconds of Dynamo's guards, and both kinds of step."""
    model, image = build_model(HOST, depth), make_image(HOST)
    options = {**CACHE_SETTINGS, "inner_backend": inner, "frozen_weights": is_frozen}
    backend = _TimingBackend(options)
    call, steps = torch.compile(model, backend=backend), image_after_image(image)
    kinds = {"computed": False, "hit": True}
    for _ in range(3):
        call(**next(steps))
    gc.collect()
    gc.freeze()
    whole: dict[str, list[float]] = {name: [] for name in kinds}
    driver: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(num_rounds):
        for name, is_hit in kinds.items():
            force_decision(model, hit=is_hit)
            call(**next(steps))
            whole[name].append(microseconds_of(call, next(steps)))
            driver[name].append(backend.nanoseconds[-1] / 1e3)
    guards = _guards(model, image[0], num_rounds)
    results = {}
    for name, is_hit in kinds.items():
        force_decision(model, hit=is_hit)
        parts = _profiled(call, steps, num_rounds)
        results[name] = HostResult(spread_of(whole[name]), spread_of(driver[name]), parts)
    gc.unfreeze()
    return guards, results


def microseconds_of(call: Model, inputs: Inputs) -> float:
    """CPU time of this thread for one call."""
    start = time.thread_time_ns()
    call(**inputs)
    return (time.thread_time_ns() - start) / 1e3


def _guards(model: nn.Module, inputs: Inputs, num_rounds: int) -> Spread:
    """What checking the guards of the model's one graph takes."""
    code, function = list(codes_of(model.forward))[0], type(model).forward
    (entry,) = _debug_get_cache_entry_list(code)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    closure = dict(zip(code.co_freevars, cells, strict=True))
    variables = {"self": model, "args": (), "kwargs": inputs, **closure}
    if not entry.guard_manager.check(variables):
        raise RuntimeError("the guards of the graph that was just called don't hold")
    times = []
    for _ in range(num_rounds):
        start = time.thread_time_ns()
        entry.guard_manager.check(variables)
        times.append((time.thread_time_ns() - start) / 1e3)
    return spread_of(times)


def _profiled(call: Model, steps: Iterator[Inputs], num_steps: int) -> dict[str, PartResult]:
    """The parts of a step, the largest first."""
    profile = cProfile.Profile(time.thread_time)
    for _ in range(num_steps):
        inputs = next(steps)
        profile.enable()
        call(**inputs)
        profile.disable()
    seconds: defaultdict[str, float] = defaultdict(float)
    num_calls: defaultdict[str, int] = defaultdict(int)
    for (file, *_), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        _, calls, own_seconds, _, callers = row
        if file == "~":  # Written in C: for those that called it.
            for (caller, *_), (_, _, theirs, _) in callers.items():
                seconds[_part_of(caller)] += theirs
        else:
            seconds[_part_of(file)] += own_seconds
            num_calls[_part_of(file)] += calls
    total = sum(seconds.values())
    parts = {n: PartResult(s / total, num_calls[n] / num_steps) for n, s in seconds.items()}
    return dict(sorted(parts.items(), key=lambda part: -part[1].share))


def _part_of(file: str) -> str:
    path = Path(file).as_posix()
    found = [name for name, places in PARTS.items() if any(place in path for place in places)]
    return found[0] if found else OTHER


def host_text(guards: Spread, results: Mapping[str, HostResult]) -> str:
    """The three figures, then a row a part."""
    lines = [f"guards: {guards:.0f} us"]
    for name, result in results.items():
        lines.append(f"\n{name}: {result.whole:.0f} us, of them the driver {result.driver:.0f}")
        rows = [["part", "share", "calls of Python"]]
        rows += [[n, f"{p.share:.1%}", f"{p.num_calls:.0f}"] for n, p in result.parts.items()]
        total = sum(part.num_calls for part in result.parts.values())
        lines.append(table([*rows, ["all", "100%", f"{total:.0f}"]]))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.host_parts")
    parser.add_argument("--depth", type=parse_depth, default=Depth(6, 12))
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--frozen", action="store_true")
    parsed = parser.parse_args(arguments)
    use_one_thread()
    with torch.no_grad():
        print(host_text(*measure_host(parsed.depth, parsed.repeats, is_frozen=parsed.frozen)))


if __name__ == "__main__":
    main(sys.argv[1:])
