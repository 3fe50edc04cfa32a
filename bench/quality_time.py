"""What the skipped blocks are worth in time: whole pictures, everything compiled.

    python -m bench.quality_time --model flux-scenes-guided

Each round draws one picture by every method in turn; the figure is the ratio to the uncached
picture of the same round, in CPU time of one thread, so other work on the machine disturbs it
little. Compilation is not in it.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo
from diffusers import DiffusionPipeline

import dit_cachegraph
from bench import _quality_peers as peers
from bench._engines import use_one_thread
from bench._machine import this_machine
from bench._quality_draw import artist_for, by_ours, by_pipeline
from bench._quality_methods import dbcache
from bench._quality_models import MODELS, QualityModel
from bench._spread import Spread, paired_ratios, spread_of
from bench._table import table
from dit_cachegraph.backend import cachedit
from dit_cachegraph.policy.presets import PRESETS

NUM_STEPS = 28
FEWER_STEPS = (21, 14)
PICTURE = range(1)
THRESHOLD = dbcache(1, 0, 0.1)
OURS: Mapping[str, Mapping[str, object]] = {
    **{f"ours preset {name}": {"preset": name} for name in PRESETS},
    "ours F1B0 R0.1": {**THRESHOLD, "batch_rule": "mean"},
}


@dataclass(frozen=True, slots=True)
class Contender:
    """One method: `draw()` draws one picture; `share` of the block computations runs."""

    name: str
    share: float
    draw: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timed:
    """CPU seconds a picture, and their ratio to the uncached picture of the same round."""

    name: str
    share: float
    seconds: Spread
    ratio: Spread


def contenders_of(model: QualityModel) -> list[Contender]:
    """The uncached one first; nothing is compiled before the first picture."""
    return [*_uncached(model), *_ours(model), *_peers(model)]


def _uncached(model: QualityModel) -> list[Contender]:
    pipe = _compiled(model.load())
    return [
        Contender(f"euler, {n} steps", n / NUM_STEPS, _drawing(model, pipe, n))
        for n in (NUM_STEPS, *FEWER_STEPS)
    ]


def _ours(model: QualityModel) -> list[Contender]:
    pipe = model.load()
    pipe.transformer.compile(backend=cachedit)

    def drawing(name: str, settings: Mapping[str, object]) -> Callable[[], object]:
        def draw() -> None:
            with dit_cachegraph.request(name, **settings):
                model.draw(pipe, PICTURE, NUM_STEPS)

        return draw

    with tempfile.TemporaryDirectory() as folder:
        artist = artist_for(model, 1, 1, Path(folder))
        shares = {name: by_ours(artist, s, NUM_STEPS).share for name, s in OURS.items()}
    return [Contender(name, shares[name], drawing(name, s)) for name, s in OURS.items()]


def _peers(model: QualityModel) -> list[Contender]:
    def make() -> DiffusionPipeline:
        return peers.with_cache_dit(model, THRESHOLD, 0, prunes=False)

    with tempfile.TemporaryDirectory() as folder:
        share = by_pipeline(artist_for(model, 1, 1, Path(folder)), make(), NUM_STEPS).share
    draw = _drawing(model, _compiled(make()), NUM_STEPS)
    return [Contender("cache-dit F1B0 R0.1", share, draw)]


def _compiled(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.transformer.compile()
    return pipe


def _drawing(model: QualityModel, pipe: DiffusionPipeline, num_steps: int) -> Callable[[], object]:
    return lambda: model.draw(pipe, PICTURE, num_steps)


def measure(contenders: Sequence[Contender], num_rounds: int) -> list[Timed]:
    """One picture of each to compile, then rounds of one picture of each."""
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
        Timed(c.name, c.share, spread_of(taken), paired_ratios(taken, seconds[0]))
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
    # All engines compile one function, for many modules; at the limit some would run eagerly.
    torch._dynamo.config.recompile_limit = 64
    timed = measure(contenders_of(MODELS[parsed.model]), parsed.rounds)
    lines = [["method", "share of blocks", "CPU s a picture", "ratio (quartiles)"]]
    lines += [
        [t.name, f"{t.share:.2f}", f"{t.seconds.median:.3f}", f"{t.ratio:.2f}"] for t in timed
    ]
    print(f"{parsed.model}, {NUM_STEPS} steps, one picture\n{table(lines)}\n{this_machine()}")
    if parsed.json is not None:
        rows = [asdict(t) for t in timed]
        result = {"model": parsed.model, "machine": asdict(this_machine()), "methods": rows}
        parsed.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
