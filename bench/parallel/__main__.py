"""Images of 28 steps by two ranks that have each half of the tokens, over gloo on this machine.

    python -m bench.parallel --json parallel.json            a FLUX of 6+12 blocks, about 6 minutes
    python -m bench.parallel --quick                         small, uncompiled: to see that it runs

Before anything is timed, the outputs of two ranks are compared with those of one process, step by
step, and their decisions. 10 of the steps compute and 18 are reused, each of which still compares
its diff (F1B0). The engines draw an image each, in turn. A rank that waits takes no CPU time, so
times are of the clock, of the slower rank, after a barrier: nothing else may run.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.common.machine import Machine, this_machine
from bench.common.spread import Spread, paired_ratios, spread_of
from bench.common.table import table
from bench.parallel.ranks import HITS, MASK, NUM_RANKS, Drawn, Job, Pair
from bench.speed.engines import CACHEDIT, PLAIN
from bench.speed.flux import NUM_IMAGE_STEPS, PRESETS, Depth, Preset, parse_depth
from dit_cachegraph.ranks.standing import HEADER_SIZE

ENGINES = (PLAIN, CACHEDIT)
MAX_ERROR = 1e-4
LATENTS_SAMPLE = 256
GATHERS = {
    "as a step begins": HEADER_SIZE + LATENTS_SAMPLE + 1,
    "to compare": 2 + 2 * 3,
}
COMPUTED_STEP = next(i for i, computes in enumerate(MASK) if computes and i > 0)
GATHERED = "c10d::_allgather_base_"


@dataclass(frozen=True, slots=True)
class Parallel:
    """`plain_milliseconds`: of a step of plain `torch.compile` on two ranks. What is cached is to
    plain's in the same round; gathers are in milliseconds, each of what one look gathers.
    `collectives`: of a computed step and of a hit, by engine."""

    machine: Machine
    preset: Preset
    depth: Depth
    inner: str
    num_rounds: int
    plain_milliseconds: Spread
    computed: Spread
    hit: Spread
    image: Spread
    gathers: Mapping[str, Spread]
    collectives: Mapping[str, Mapping[str, int]]
    errors: Mapping[str, float]


def measure(preset: Preset, depth: Depth, inner: str, num_rounds: int) -> Parallel:
    """Compile all, check them, then time them in turn.

    Raises:
        RuntimeError: an output is wrong, or ranks reused other steps than one process did.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs, drawn = {}, {}
        for engine in ENGINES:
            pairs[engine] = Pair(Job(engine, preset, depth, inner), Path(folder))
            drawn[engine] = pairs[engine].drawn()
        errors = {engine: check(engine, drawn[engine]) for engine in ENGINES}
        rounds: dict[str, list[list[float]]] = {engine: [] for engine in ENGINES}
        gathers: dict[str, list[float]] = {name: [] for name in GATHERS}
        for _ in range(num_rounds):
            for engine, pair in pairs.items():
                rounds[engine].append(pair.draw())
            for name, size in GATHERS.items():
                gathers[name] += pairs[CACHEDIT].gather(size)
        for pair in pairs.values():
            pair.close()
    computed, hit, image = ratios(rounds)
    return Parallel(
        machine=this_machine(),
        preset=preset,
        depth=depth,
        inner=inner,
        num_rounds=num_rounds,
        plain_milliseconds=spread_of([1e3 * s for steps in rounds[PLAIN] for s in steps]),
        computed=computed,
        hit=hit,
        image=image,
        gathers={name: spread_of([1e3 * s for s in all_of]) for name, all_of in gathers.items()},
        collectives=_collectives(drawn),
        errors=errors,
    )


def check(engine: str, ranks: Sequence[Drawn]) -> float:
    """The worst relative error of a step of two ranks to one process."""
    wanted = HITS if engine == CACHEDIT else ()
    errors = []
    for rank, drawn in enumerate(ranks):
        if drawn.hits != wanted or drawn.hits_alone != wanted:
            raise RuntimeError(
                f"{engine} was to reuse steps {wanted}; rank {rank} did {drawn.hits}, and one "
                f"process {drawn.hits_alone}"
            )
        for shared, alone in zip(drawn.shared, drawn.alone, strict=True):
            error = float(np.abs(shared - alone).sum() / np.abs(alone).sum())
            if not error <= MAX_ERROR:
                raise RuntimeError(f"{engine} on {NUM_RANKS} ranks is {error:.2g} off one process")
            errors.append(error)
    return max(errors)


def ratios(rounds: Mapping[str, Sequence[Sequence[float]]]) -> tuple[Spread, Spread, Spread]:
    """Of computed steps, hits and whole images, to plain's in the same round."""
    plain = [statistics.median(steps) for steps in rounds[PLAIN]]

    def of(chosen: Sequence[int]) -> Spread:
        medians = [statistics.median([steps[i] for i in chosen]) for steps in rounds[CACHEDIT]]
        return paired_ratios(medians, plain)

    whole = paired_ratios([sum(s) for s in rounds[CACHEDIT]], [sum(s) for s in rounds[PLAIN]])
    return of([i for i in range(NUM_IMAGE_STEPS) if i not in HITS]), of(HITS), whole


def _collectives(drawn: Mapping[str, Sequence[Drawn]]) -> dict[str, dict[str, int]]:
    cached = drawn[CACHEDIT][0].collectives
    return {
        "plain": drawn[PLAIN][0].collectives[COMPUTED_STEP],
        "cached, computed": cached[COMPUTED_STEP],
        "cached, hit": cached[HITS[0]],
    }


def as_text(found: Parallel) -> str:
    """Tables."""
    plain = found.plain_milliseconds
    steps = [
        ["to plain in the same round", "median (quartiles)"],
        ["computed step", f"{found.computed:.3f}"],
        ["hit", f"{found.hit:.3f}"],
        [f"image, {len(HITS)} of {NUM_IMAGE_STEPS} reused", f"{found.image:.3f}"],
    ]
    looks = [["a gather", "numbers", "ms", "of a plain step"]]
    for name, spread in found.gathers.items():
        share = f"{100 * spread.median / plain.median:.1f} %"
        looks.append([name, str(GATHERS[name]), f"{spread:.3f}", share])
    counts = [["collectives of a step", "of blocks and ends", "of looks"]]
    for name, of_step in found.collectives.items():
        num_looks = of_step.get(GATHERED, 0)
        counts.append([name, str(sum(of_step.values()) - num_looks), str(num_looks)])
    lines = [str(found.machine), f"{found.preset}, {found.depth} blocks, F1B0, {found.inner}"]
    lines += [f"{NUM_RANKS} ranks by Ulysses over gloo, one thread each, {found.num_rounds} rounds"]
    lines += [f"a step of plain torch.compile takes {plain:.2f} ms"]
    lines += [table(steps), table(looks), table(counts)]
    lines += [f"{name} to one process: error {error:.2g}" for name, error in found.errors.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.parallel")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--depth", type=parse_depth, default=Depth(6, 12))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="1+2 blocks, eager, a round")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parsed = parser.parse_args(arguments)
    if parsed.rounds < 1:
        parser.error("--rounds is a count of at least 1")
    if PRESETS[parsed.preset].num_heads % NUM_RANKS:
        parser.error(f"Ulysses splits heads over {NUM_RANKS} ranks: --preset cpu")
    depth, inner, num_rounds = parsed.depth, "inductor", parsed.rounds
    if parsed.quick:
        depth, inner, num_rounds = Depth(1, 2), "eager", 1
    found = measure(PRESETS[parsed.preset], depth, inner, num_rounds)
    print(as_text(found))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(asdict(found), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
