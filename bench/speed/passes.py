"""Whole images of 28 steps by each engine, with the same 10 steps computed and 18 reused.

    python -m bench.speed.passes --preset host --depth 6+12
    python -m bench.speed.passes --preset cpu --engines plain,cachedit,cache-dit-compiled

Each engine is in a process of its own, since some of them change classes and what Dynamo keeps of
them. Those processes draw an image each, one after the other; then comes the next round. So a slow
moment of the machine falls on all of them, and an idle engine takes no time.

Before anything is timed, all that cache are compared with each other, step by step, and all that
don't with plain `torch.compile`. Times are process CPU time with one thread.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.common.machine import Machine, this_machine
from bench.common.spread import Spread, paired_ratios
from bench.common.table import table
from bench.common.threads import use_one_thread
from bench.speed.engines import BLOCKS, CACHEDIT, FROZEN, PEER_COMPILED, PLAIN
from bench.speed.flux import (
    NUM_IMAGE_STEPS,
    PRESETS,
    Depth,
    Inputs,
    Preset,
    make_image,
    parse_depth,
)
from bench.speed.rivals import (
    DRAWERS,
    FIRST_BLOCK_CACHE,
    FLOOR,
    MASK,
    PEER,
    REGIONAL,
    UNGUARDED,
    Drawer,
    draw,
)

MAX_ERROR = 1e-4
NUM_WARM_IMAGES = 2
UNCACHED = (PLAIN, REGIONAL)
SAME_DECISIONS = (CACHEDIT, UNGUARDED, FROZEN, BLOCKS, PEER, PEER_COMPILED)
HITS = tuple(i for i, computes in enumerate(MASK) if not computes)


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Medians with quartiles over the rounds, each to plain in the same round. None where the
    engine has no such step, or doesn't decide as the others do."""

    computed: Spread | None
    hit: Spread | None
    image: Spread | None


@dataclass(frozen=True, slots=True)
class Passes:
    """`has_dict_tags`: Dynamo's shortcut for guards was on, which torch leaves off;
    `plain_milliseconds`: of one step of plain `torch.compile`, the median of all."""

    machine: Machine
    preset: Preset
    depth: Depth
    has_dict_tags: bool
    num_rounds: int
    plain_milliseconds: float
    engines: Mapping[str, EngineTimes]
    errors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What an engine's steps returned once it had settled, and which of them it reused."""

    steps: tuple[NDArray[np.float32], ...]
    hits: tuple[int, ...] | None


def measure_passes(
    preset: Preset,
    depth: Depth,
    engines: Sequence[str],
    num_rounds: int,
    has_dict_tags: bool = False,
) -> Passes:
    """Compile all, check them, then time them in turn.

    Raises:
        RuntimeError: an output is wrong, or an engine reused other steps than it was told to.
    """
    workers, drawn = {}, {}
    for engine in engines:
        workers[engine] = _start(engine, preset, depth, has_dict_tags)
        drawn[engine] = workers[engine].recv()
    errors = _check(drawn)
    rounds: dict[str, list[Sequence[float]]] = {engine: [] for engine in engines}
    for _ in range(num_rounds):
        for engine, worker in workers.items():
            worker.send("draw")
            rounds[engine].append(worker.recv())
    for worker in workers.values():
        worker.close()
    plain = rounds[PLAIN]
    return Passes(
        machine=this_machine(),
        preset=preset,
        depth=depth,
        has_dict_tags=has_dict_tags,
        num_rounds=num_rounds,
        plain_milliseconds=statistics.median([s for image in plain for s in image]) * 1e3,
        engines={engine: _times(engine, seconds, plain) for engine, seconds in rounds.items()},
        errors=errors,
    )


def _start(engine: str, preset: Preset, depth: Depth, has_dict_tags: bool) -> Connection:
    """A process that sends what it draws, and then, as often as it is asked, the CPU-seconds of
    the steps of one more image."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    given = (engine, preset, depth, has_dict_tags, theirs)
    context.Process(target=_work, args=given, daemon=True).start()
    theirs.close()
    return ours


def _work(
    engine: str, preset: Preset, depth: Depth, has_dict_tags: bool, parent: Connection
) -> None:
    use_one_thread()
    torch._dynamo.config.use_recursive_dict_tags_for_guards = has_dict_tags
    image = make_image(preset)
    with torch.no_grad():
        drawer = DRAWERS[engine](preset, depth)
        for _ in range(NUM_WARM_IMAGES):
            steps = draw(drawer, image)
        hits = drawer.hits()
        parent.send(_Drawn(tuple(s.numpy() for s in steps), None if hits is None else tuple(hits)))
        gc.collect()
        gc.freeze()
        while True:
            try:
                parent.recv()
            except EOFError:
                return
            parent.send(_timed(drawer, image))


def _timed(drawer: Drawer, image: Sequence[Inputs]) -> list[float]:
    """Process CPU-seconds of each step of an image."""
    seconds = []
    with drawer.inside():
        for inputs in image:
            start = time.process_time_ns()
            drawer.call(**inputs)
            seconds.append((time.process_time_ns() - start) / 1e9)
    return seconds


def _check(drawn: Mapping[str, _Drawn]) -> dict[str, float]:
    """The worst relative error of a step: of those that cache to ours, of others to plain."""
    for engine in SAME_DECISIONS:
        if engine in drawn and drawn[engine].hits != HITS:
            raise RuntimeError(f"{engine} was to reuse steps {HITS}, and did {drawn[engine].hits}")
    errors = {}
    for base, engines in ((PLAIN, UNCACHED), (CACHEDIT, SAME_DECISIONS)):
        for engine in [e for e in engines if e != base and {e, base} <= drawn.keys()]:
            pairs = zip(drawn[engine].steps, drawn[base].steps, strict=True)
            # The largest as numpy has it, for which a NaN anywhere is one.
            error = float(np.max([np.abs(a - b).sum() / np.abs(b).sum() for a, b in pairs]))
            if not error <= MAX_ERROR:
                raise RuntimeError(f"{engine} is {error:.2g} off {base}, expected {MAX_ERROR}")
            errors[f"{engine} to {base}"] = error
    return errors


def _times(
    engine: str, rounds: Sequence[Sequence[float]], plain: Sequence[Sequence[float]]
) -> EngineTimes:
    """Medians of each image, by those of plain in the same round."""
    steps = [statistics.median(image) for image in plain]

    def to_plain(chosen: Sequence[int]) -> Spread:
        medians = [statistics.median([image[i] for i in chosen]) for image in rounds]
        return paired_ratios(medians, steps)

    all_steps = range(NUM_IMAGE_STEPS)
    if engine == FLOOR:
        return EngineTimes(None, to_plain(all_steps), None)
    if engine == FIRST_BLOCK_CACHE:
        return EngineTimes(None, to_plain(all_steps[1:]), None)
    whole = paired_ratios([sum(image) for image in rounds], [sum(image) for image in plain])
    if engine in UNCACHED:
        return EngineTimes(to_plain(all_steps), None, whole)
    computed = [i for i in all_steps if i not in HITS]
    return EngineTimes(to_plain(computed), to_plain(HITS), whole)


def passes_table(passes: Passes) -> str:
    """One row an engine."""
    rows = [["engine", "computed step", "hit", f"image, {len(HITS)} of {NUM_IMAGE_STEPS} reused"]]
    for engine, times in passes.engines.items():
        spreads = (times.computed, times.hit, times.image)
        rows.append([engine, *("-" if spread is None else f"{spread:.3f}" for spread in spreads)])
    lines = [str(passes.machine), f"{passes.preset}, {passes.depth} blocks, F1B0"]
    lines += [
        f"CPU time to plain's, which takes {passes.plain_milliseconds:.2f} ms a step; medians"
    ]
    tags = ", with torch's shortcut for guards" if passes.has_dict_tags else ""
    lines += [f"with quartiles of {passes.num_rounds} rounds{tags}", table(rows)]
    lines += [f"relative error, {name}: {error:.2g}" for name, error in passes.errors.items()]
    return "\n".join(lines)


def _engines(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    for name in chosen:
        if name not in DRAWERS:
            raise argparse.ArgumentTypeError(f"an engine is one of {', '.join(DRAWERS)}: {name!r}")
    if PLAIN not in chosen:
        raise argparse.ArgumentTypeError(f"all are compared with {PLAIN}: add it to {text!r}")
    return tuple(engine for engine in DRAWERS if engine in chosen)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.passes")
    parser.add_argument("--preset", choices=PRESETS, default="host")
    parser.add_argument("--depth", type=parse_depth, default=Depth(6, 12))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engines", type=_engines, default=tuple(DRAWERS))
    parser.add_argument(
        "--dict-tags", action="store_true", help="with torch's shortcut for guards, off by default"
    )
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parsed = parser.parse_args(arguments)
    if parsed.rounds < 1:
        parser.error("--rounds is a count of at least 1")
    passes = measure_passes(
        PRESETS[parsed.preset], parsed.depth, parsed.engines, parsed.rounds, parsed.dict_tags
    )
    print(passes_table(passes))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(asdict(passes), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
