"""What `observe` costs a host-bound hit, with a callback that does nothing.

    python -m bench.observe                 1,000 pairs of hits, on the host preset of 6+12 blocks
    python -m bench.observe --json FILE     keeps the figures

Two hits in a row are a pair, one observed and one not, in turns which comes first. The cost is the
median of their differences, as a share of the median hit that isn't observed; CPU time of the
thread, so that other programs count for little. The difference of two hits that are both not
observed is measured alike: so much is noise. It ends with 1 from 2 % on.
"""

import argparse
import contextlib
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import dit_cachegraph
from bench.common.machine import Machine, this_machine
from bench.common.spread import Spread, spread_of
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
from bench.speed.host_parts import microseconds_of
from dit_cachegraph.backend import cachedit

MAY_COST = 0.02


@dataclass(frozen=True, slots=True)
class ObserveResult:
    """Microseconds of a hit that isn't observed, of what observing adds to it, and of what is
    measured where it adds nothing."""

    machine: Machine
    num_pairs: int
    hit: Spread
    added: Spread
    noise: Spread

    @property
    def share(self) -> float:
        """What observing adds, as a share of a hit."""
        return self.added.median / self.hit.median


def measure(depth: Depth, num_pairs: int, inner: str = "inductor") -> ObserveResult:
    """Pairs of hits, and as many of which neither is observed."""
    model = build_model(HOST, depth)
    options = {**CACHE_SETTINGS, "inner_backend": inner}
    call = torch.compile(model, backend=cachedit, options=options)  # type: ignore[arg-type]
    steps = image_after_image(make_image(HOST))
    force_decision(model, hit=True)
    for _ in range(10):
        call(**next(steps))
    gc.collect()
    gc.freeze()
    hits, added = _pairs(call, steps, num_pairs, is_observed=True)
    _, noise = _pairs(call, steps, num_pairs, is_observed=False)
    gc.unfreeze()
    found = [spread_of(values) for values in (hits, added, noise)]
    return ObserveResult(this_machine(), num_pairs, *found)


def _pairs(
    call: Model, steps: Iterator[Inputs], num_pairs: int, *, is_observed: bool
) -> tuple[list[float], list[float]]:
    """Microseconds of the plain hit of each pair, and by how much the other took longer."""
    plain, added = [], []
    for i in range(num_pairs):
        taken = {}
        for is_other in (False, True) if i % 2 == 0 else (True, False):
            observing = dit_cachegraph.observe(_nothing) if is_other and is_observed else None
            with observing or contextlib.nullcontext():
                taken[is_other] = microseconds_of(call, next(steps))
        plain.append(taken[False])
        added.append(taken[True] - taken[False])
    return plain, added


def _nothing(_: object) -> None:
    pass


def told(result: ObserveResult) -> str:
    """The figures as text: medians and quartiles."""
    return (
        f"hit {result.hit:.1f} us; observing adds {result.added:.1f} us, {result.share:.2%} of it; "
        f"noise {result.noise:.1f} us; {result.num_pairs} pairs; {result.machine}"
    )


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 where observing costs too much."""
    parser = argparse.ArgumentParser(prog="python -m bench.observe")
    parser.add_argument("--depth", type=parse_depth, default=Depth(6, 12))
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    use_one_thread()
    with torch.no_grad():
        result = measure(given.depth, given.pairs)
    print(told(result))
    if given.json is not None:
        found = {**asdict(result), "share": result.share}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(result.share >= MAY_COST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
