"""How long a call takes, in turn with others."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.common.spread import Spread, paired_ratios, spread_of


def _nothing() -> object:
    return None


@dataclass(frozen=True, slots=True)
class Kind:
    """What is called, and what is done before that isn't timed."""

    call: Callable[[], object]
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Timed:
    """Milliseconds until all of it was done, until the call returned to the host, and the first of
    these to that of the base, round by round."""

    whole: Spread
    host: Spread
    to_base: Spread


def time_in_turn(
    kinds: Mapping[str, Kind], base: str, device: torch.device, num_rounds: int
) -> dict[str, Timed]:
    """Each once a round, after one of its kind that is not timed."""
    whole: dict[str, list[float]] = {name: [] for name in kinds}
    host: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(num_rounds):
        for name, kind in kinds.items():
            kind.prepare()
            kind.call()
            _wait(device)
            start = time.perf_counter()
            kind.call()
            host[name].append((time.perf_counter() - start) * 1e3)
            _wait(device)
            whole[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: Timed(spread_of(own), spread_of(host[name]), paired_ratios(own, whole[base]))
        for name, own in whole.items()
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
