"""Cold compile in CPU-seconds: the first call of a model, in a fresh process with empty caches.

    python -m bench.speed.cold --engine plain --depth 6+12    one engine, JSON on the last line
    ... --engine loaded --saved DIR                           the same of what another process saved
    ... --save DIR                                            saves it

The process first compiles a tiny function, which pays for what any first compilation costs
(imports, the precompiled header). All work runs in this process and the compilers that it starts
and waits for (Inductor's pool of workers is off), so that its own usage and that of its children
hold everything.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._dynamo.utils import compilation_time_metrics

from bench.common.machine import ROOT
from bench.common.threads import use_one_thread
from bench.speed.engines import (
    BLOCKS,
    ENGINES,
    LOADED,
    OURS,
    PEER_COMPILED,
    Model,
    compile_for,
    dynamo_counts,
    load_for,
    num_distinct_segments,
    save_for,
)
from bench.speed.flux import COLD, Depth, build_model, make_image, parse_depth

NUM_LATER_STEPS = 4
MADE_BY_RIVALS = (PEER_COMPILED, BLOCKS)


@dataclass(frozen=True, slots=True)
class ColdResult:
    """What one engine's first call cost. `python_seconds` is CPU time of the process itself,
    `children_seconds` that of the C++ compilers; `trace_seconds` is the wall time of Dynamo
    without its backend. `later_seconds`: the CPU time of the four calls after it, by process and
    compilers, with what they compile."""

    engine: str
    python_seconds: float
    children_seconds: float
    wall_seconds: float
    trace_seconds: float
    later_seconds: float
    num_graphs: int
    num_breaks: int
    num_recompiles: int
    num_distinct_segments: int | None

    @property
    def cpu_seconds(self) -> float:
        return self.python_seconds + self.children_seconds


def measure_cold(engine: str, depth: Depth) -> ColdResult:
    """Run one engine in a process of its own, with an empty cache folder."""
    with tempfile.TemporaryDirectory() as saved:
        if engine == LOADED:
            _run(["--save", saved], depth)
        output = _run(["--engine", engine, "--saved", saved], depth)
    return ColdResult(**json.loads(output.splitlines()[-1]))


def _run(arguments: Sequence[str], depth: Depth) -> str:
    """What a process prints that has an empty cache folder."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "bench.speed.cold", *arguments, "--depth", str(depth)],
            cwd=ROOT,
            env={**os.environ, **_environment(folder)},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return done.stdout


def _environment(cache_folder: str) -> Mapping[str, str]:
    return {
        "TORCHINDUCTOR_CACHE_DIR": cache_folder,
        "TRITON_CACHE_DIR": str(Path(cache_folder) / "triton"),
        # In-process: a worker that is still alive at the end is in nobody's count.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True, slots=True)
class _Usage:
    """CPU-seconds (user and system) of the process and of its children, and wall seconds."""

    own: float
    children: float
    wall: float


def _usage() -> _Usage:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Usage(
        own=own.ru_utime + own.ru_stime,
        children=children.ru_utime + children.ru_stime,
        wall=time.perf_counter(),
    )


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model that no call has compiled yet. `start` returns what is called for a step; an image is
    drawn `inside` of a context. `num_segments`: how many of ours were compiled."""

    start: Callable[[], Model]
    inside: Callable[[], AbstractContextManager[object]] = nullcontext
    num_segments: Callable[[], int | None] = lambda: None


def _subject(engine: str, depth: Depth, saved: Path) -> _Subject:
    if engine in MADE_BY_RIVALS:
        # Who measures without the peer needn't have it.
        from bench.speed.rivals import DRAWERS  # noqa: PLC0415

        drawer = DRAWERS[engine](COLD, depth)
        return _Subject(lambda: drawer.call, drawer.inside)
    model = build_model(COLD, depth)
    if engine not in OURS:
        return _Subject(lambda: compile_for(engine, model))
    return _Subject(
        lambda: load_for(model, saved) if engine == LOADED else compile_for(engine, model),
        num_segments=lambda: num_distinct_segments(model),
    )


def _measure_here(engine: str, depth: Depth, saved: Path) -> ColdResult:
    subject, image = _subject(engine, depth, saved), make_image(COLD)
    _pay_fixed_part()
    with subject.inside():
        trace_before, before, counts_before = _trace_seconds(), _usage(), dynamo_counts()
        call = subject.start()
        call(**image[0])
        after, counts = _usage(), dynamo_counts()
        trace_seconds = _trace_seconds() - trace_before
        for inputs in image[1 : 1 + NUM_LATER_STEPS]:
            call(**inputs)
    end = _usage()
    return ColdResult(
        engine=engine,
        python_seconds=after.own - before.own,
        children_seconds=after.children - before.children,
        wall_seconds=after.wall - before.wall,
        trace_seconds=trace_seconds,
        later_seconds=end.own + end.children - after.own - after.children,
        num_graphs=counts.num_graphs - counts_before.num_graphs,
        num_breaks=counts.num_breaks - counts_before.num_breaks,
        num_recompiles=dynamo_counts().num_frames - counts.num_frames,
        num_distinct_segments=subject.num_segments(),
    )


def _pay_fixed_part() -> None:
    def tiny(x: Tensor) -> Tensor:
        return torch.sin(x) + 1

    torch.compile(tiny)(torch.zeros(64))


def _trace_seconds() -> float:
    whole = sum(compilation_time_metrics.get("_compile.compile_inner", ()))
    return whole - sum(compilation_time_metrics.get("OutputGraph.call_user_compiler", ()))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.cold")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--engine", choices=(*ENGINES[1:], *MADE_BY_RIVALS, LOADED))
    what.add_argument("--save", type=Path)
    parser.add_argument("--saved", type=Path, default=Path())
    parser.add_argument("--depth", type=parse_depth, required=True)
    parsed = parser.parse_args(arguments)
    use_one_thread()
    with torch.no_grad():
        if parsed.save is not None:
            save_for(build_model(COLD, parsed.depth), make_image(COLD)[0], parsed.save)
            return
        print(json.dumps(asdict(_measure_here(parsed.engine, parsed.depth, parsed.saved))))


if __name__ == "__main__":
    main(sys.argv[1:])
