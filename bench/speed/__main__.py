"""Speed of a FLUX with random weights: eager, plain `torch.compile`, and with the cache.

    python -m bench.models --preset host      maths near zero: what the host does between kernels
    python -m bench.models --preset cpu       maths that a CPU works on
    python -m bench.models --depth 19+38      compile time alone, at FLUX's own depth
    python -m bench.models --state            the share of finding a step's state in it

All times are CPU time with one thread, so other work on the machine disturbs them little.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.common.arguments import some_of
from bench.common.machine import Machine, this_machine
from bench.common.table import table
from bench.common.threads import use_one_thread
from bench.speed.cold import MADE_BY_RIVALS, ColdResult, measure_cold
from bench.speed.engines import BLOCKS, CACHEDIT, EAGER, ENGINES, LOADED, PEER_COMPILED, PLAIN
from bench.speed.flux import COLD, PRESETS, Depth, Preset, parse_depth
from bench.speed.state import StateResult, measure_state
from bench.speed.steps import StepResult, measure_steps

DEFAULT_DEPTH = Depth(6, 12)
# The peer's steps are measured by `bench.speed.passes`, its cold compile beside the others.
STARTED = (*ENGINES, *MADE_BY_RIVALS)
COMPARED = (
    (CACHEDIT, PLAIN),
    (CACHEDIT, PEER_COMPILED),
    (BLOCKS, PEER_COMPILED),
    (LOADED, CACHEDIT),
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to measure."""

    preset: Preset
    engines: tuple[str, ...]
    depth: Depth
    num_rounds: int
    num_cold_runs: int
    measures_state: bool
    json_path: Path | None

    @property
    def measures_cold(self) -> bool:
        return not self.measures_state and self.num_cold_runs > 0

    @property
    def measures_steps(self) -> bool:
        return not self.measures_state and self.depth == DEFAULT_DEPTH and self.num_rounds > 0


@dataclass(frozen=True, slots=True)
class ColdRatio:
    """Ours to plain: all CPU time, and that of the Python process without its children."""

    cpu_seconds: float
    python_seconds: float


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured."""

    machine: Machine
    preset: Preset
    depth: Depth
    cold: tuple[ColdResult, ...] = ()
    steps: StepResult | None = None
    state: StateResult | None = None


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=_title())
    parser.add_argument("--preset", choices=PRESETS, default="host", help="sizes of the steps")
    parser.add_argument("--engines", type=some_of(STARTED), default=ENGINES, help=",".join(STARTED))
    parser.add_argument(
        "--depth",
        type=parse_depth,
        default=DEFAULT_DEPTH,
        help="double+single blocks; any but 6+12 measures compile time alone",
    )
    parser.add_argument("--repeats", type=int, default=100, help="rounds of steps; 0 for none")
    parser.add_argument("--cold-runs", type=int, default=1, help="cold compiles; 0 for none")
    parser.add_argument("--state", action="store_true", help="measure finding the state alone")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 0 or parsed.cold_runs < 0:
        parser.error("--repeats and --cold-runs are counts")
    return Arguments(
        preset=PRESETS[parsed.preset],
        engines=parsed.engines,
        depth=parsed.depth,
        num_rounds=parsed.repeats,
        num_cold_runs=parsed.cold_runs,
        measures_state=parsed.state,
        json_path=parsed.json,
    )


def _title() -> str:
    return (__doc__ or "").partition("\n")[0]


def cold_table(results: Sequence[ColdResult]) -> str:
    """One row a run, then ours to plain by the run."""
    header = ["engine", "CPU-s", "Python", "C++", "trace", "wall", "4 calls more"]
    rows = [[*header, "graphs", "breaks", "recompiles", "distinct segments"]]
    for r in results:
        seconds = (r.cpu_seconds, r.python_seconds, r.children_seconds, r.trace_seconds)
        segments = "-" if r.num_distinct_segments is None else str(r.num_distinct_segments)
        counts = (r.num_graphs, r.num_breaks, r.num_recompiles)
        times = [f"{s:.1f}" for s in (*seconds, r.wall_seconds, r.later_seconds)]
        rows.append([r.engine, *times, *map(str, counts), segments])
    lines = [table(rows)]
    for over, under in COMPARED:
        lines += [
            f"{over} to {under}: {r.cpu_seconds:.2f}x CPU-seconds, {r.python_seconds:.2f}x Python "
            "alone"
            for r in cold_ratios(results, over, under)
        ]
    return "\n".join(lines)


def cold_ratios(
    results: Sequence[ColdResult], over: str = CACHEDIT, under: str = PLAIN
) -> tuple[ColdRatio, ...]:
    """One engine to another, run by run."""
    ours, theirs = ([r for r in results if r.engine == engine] for engine in (over, under))
    return tuple(
        ColdRatio(o.cpu_seconds / t.cpu_seconds, o.python_seconds / t.python_seconds)
        for o, t in zip(ours, theirs, strict=False)
    )


def _started(engines: Sequence[str]) -> list[str]:
    """What is started in a process of its own; beside ours, what it has saved."""
    compiled = [engine for engine in engines if engine != EAGER]
    return [*compiled, LOADED] if CACHEDIT in engines else compiled


def steps_table(result: StepResult) -> str:
    """One row a kind of step; medians with quartiles."""
    rows = [["step", "CPU ms: median (quartiles)", "to plain: median (quartiles)"]]
    for name, spread in result.milliseconds.items():
        ratio = result.to_plain.get(name)
        rows.append([name, f"{spread:.3f}", "-" if ratio is None else f"{ratio:.3f}"])
    lines = [table(rows)]
    lines += [f"relative error, {name}: {error:.2g}" for name, error in result.errors.items()]
    lines += [
        f"{engine}: graphs {c.num_graphs}, breaks {c.num_breaks}, recompiles {c.num_recompiles}"
        for engine, c in result.compiled.items()
    ]
    if result.num_distinct_segments is not None:
        lines.append(f"distinct segments {result.num_distinct_segments}")
    lines.append(f"compiled while timing: {result.num_compiled_while_timing}")
    return "\n".join(lines)


def state_text(result: StateResult) -> str:
    """One line."""
    return (
        f"finding the state: {result.state_microseconds:.1f} us of a computed step's "
        f"{result.step_milliseconds:.3f} ms, {result.share:.1%}"
    )


def measure(arguments: Arguments) -> Results:
    """Everything that was asked for, printed as soon as it is known."""
    machine, preset, depth = this_machine(), arguments.preset, arguments.depth
    print(machine)
    cold: list[ColdResult] = []
    if arguments.measures_cold:
        print(f"\n{COLD}, {depth} blocks; without the fixed part of a first compilation")
        for _ in range(arguments.num_cold_runs):
            cold += [measure_cold(e, depth) for e in _started(arguments.engines)]
        print(cold_table(cold))
    steps, state = None, None
    if arguments.measures_steps:
        print(f"\n{preset}, {depth} blocks, F1B0, {arguments.num_rounds} rounds", flush=True)
        engines = tuple(engine for engine in arguments.engines if engine in ENGINES)
        steps = measure_steps(preset, depth, engines, arguments.num_rounds)
        print(steps_table(steps))
    if arguments.measures_state:
        print(f"\n{preset}, {depth} blocks, F1B0, {arguments.num_rounds} rounds", flush=True)
        state = measure_state(preset, depth, arguments.num_rounds)
        print(state_text(state))
    return Results(machine, preset, depth, tuple(cold), steps, state)


def to_json(results: Results) -> Mapping[str, object]:
    """All figures as plain data."""
    return {**asdict(results), "cold_to_plain": [asdict(r) for r in cold_ratios(results.cold)]}


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    use_one_thread()
    with torch.no_grad():
        results = measure(parsed)
    if parsed.json_path is not None:
        parsed.json_path.write_text(json.dumps(to_json(results), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
