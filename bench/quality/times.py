"""What the skipped blocks are worth in time: whole pictures, everything compiled.

    python -m bench.quality_time --model flux-scenes-guided

Each round draws a batch by every method in turn; the figure is the ratio to the uncached batch of
the same round, in CPU time of one thread, so other work on the machine disturbs it little.
Compilation is not in it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
from diffusers import DiffusionPipeline, SchedulerMixin

from bench.common.machine import this_machine
from bench.common.spread import Spread, paired_ratios, spread_of
from bench.common.table import table
from bench.common.threads import use_one_thread
from bench.quality import peers, solvers
from bench.quality.draw import Artist
from bench.quality.methods import DIFFUSERS, THIN_PAIRS, all_methods
from bench.quality.models import MODELS, QualityModel
from bench.quality.pairs import Pair, pairs
from dit_cachegraph.backend import cachedit
from dit_cachegraph.policy.presets import PRESETS

NUM_STEPS = 28
NUM_PICTURES = 8  # one batch, as in the rows of `bench.quality`
# By the names that their rows have, so that a time and a quality can be put together.
SOLVERS: Sequence[tuple[str, Callable[[], SchedulerMixin], int]] = (
    ("uncached", solvers.euler, 28),
    ("euler 0.75", solvers.euler, 21),
    ("euler 0.5", solvers.euler, 14),
    ("adams-bashforth 0.5", solvers.adams_bashforth, 14),
)
OF_DIFFUSERS = ("first block", "TaylorSeer lite", "MagCache")  # as in a quick run


@dataclass(frozen=True, slots=True)
class Contender:
    """One method: `draw()` draws a batch."""

    name: str
    draw: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timed:
    """CPU seconds a batch, and their ratio to the uncached batch of the same round."""

    name: str
    seconds: Spread
    ratio: Spread


def contenders_of(model: QualityModel, folder: Path) -> Iterator[Contender]:
    """The uncached one first; nothing is compiled before the first batch."""
    yield from _solvers(model)
    yield from _ours(model, folder)
    for pair in _chosen_pairs():
        pipe = peers.with_cache_dit(model, pair.settings(NUM_STEPS), pair.order, prunes=pair.prunes)
        yield Contender(f"cache-dit {pair.full_name}", _drawing(model, _compiled(pipe), NUM_STEPS))
    for name, make, _, value in DIFFUSERS:
        if name in OF_DIFFUSERS:
            pipe = _compiled(make(model, value, NUM_STEPS))
            yield Contender(f"diffusers {name} {value:g}", _drawing(model, pipe, NUM_STEPS))


def _chosen_pairs() -> list[Pair]:
    return [pair for pair in pairs() if pair.full_name in THIN_PAIRS]


def _solvers(model: QualityModel) -> Iterator[Contender]:
    pipe = _compiled(model.load())

    def drawing(make: Callable[[], SchedulerMixin], num_steps: int) -> Callable[[], object]:
        def draw() -> None:
            pipe.scheduler = make()
            model.draw(pipe, range(NUM_PICTURES), num_steps)

        return draw

    for name, make, num_steps in SOLVERS:
        yield Contender(name, drawing(make, num_steps))


def _ours(model: QualityModel, folder: Path) -> Iterator[Contender]:
    pipe = model.load()
    pipe.transformer.compile(backend=cachedit)
    artist = Artist(model, NUM_PICTURES, NUM_PICTURES, folder, pipe)
    names = [f"ours preset {name}" for name in PRESETS]
    names += [f"ours {pair.full_name}" for pair in _chosen_pairs()]
    methods = {method.name: method for method in all_methods()}
    for name in names:
        yield Contender(name, partial(methods[name].draw, artist, NUM_STEPS))


def _compiled(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.transformer.compile()
    return pipe


def _drawing(model: QualityModel, pipe: DiffusionPipeline, num_steps: int) -> Callable[[], object]:
    return lambda: model.draw(pipe, range(NUM_PICTURES), num_steps)


def measure(contenders: Sequence[Contender], num_rounds: int) -> list[Timed]:
    """One batch of each to compile, then rounds of one batch of each."""
    for contender in contenders:
        print(f"compiles {contender.name}", flush=True)
        contender.draw()
    seconds: list[list[float]] = [[] for _ in contenders]
    for _ in range(num_rounds):
        for contender, taken in zip(contenders, seconds, strict=True):
            start = time.process_time()
            contender.draw()
            taken.append(time.process_time() - start)
    return [
        Timed(c.name, spread_of(taken), paired_ratios(taken, seconds[0]))
        for c, taken in zip(contenders, seconds, strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality_time", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", choices=MODELS, default="flux-scenes-guided")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parsed = parser.parse_args(arguments)
    use_one_thread()
    torch.set_grad_enabled(False)
    # All engines compile one function, for many modules; at the limit some would run eagerly.
    torch._dynamo.config.recompile_limit = 64
    model = MODELS[parsed.model]
    with tempfile.TemporaryDirectory() as folder:
        timed = measure(list(contenders_of(model, Path(folder))), parsed.rounds)
    lines = [["method", "CPU s a batch", "ratio (quartiles)"]]
    lines += [[t.name, f"{t.seconds.median:.3f}", f"{t.ratio:.2f}"] for t in timed]
    about = f"{model.name}, {NUM_STEPS} steps, {NUM_PICTURES} pictures in one batch"
    print(f"{about}\n{table(lines)}\n{this_machine()}")
    if parsed.json is not None:
        result = {
            "model": model.name,
            "version": model.version,
            "num_steps": NUM_STEPS,
            "num_pictures": NUM_PICTURES,
            "num_rounds": parsed.rounds,
            "machine": str(this_machine()),
            "methods": [asdict(t) for t in timed],
        }
        parsed.json.write_text(json.dumps(result, indent=2) + "\n")
