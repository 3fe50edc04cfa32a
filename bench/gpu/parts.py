"""The parts of `bench.gpu`: what is right first, then what is quick, the longest last.

What a part has found is written at once: one that is given up, or fails, leaves what it found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.gpu.quick import bandwidth, cuda_graphs, full_flux
from bench.gpu.right import decisions, facts, two_threads, waits
from bench.gpu.run import Found, Run


@dataclass(frozen=True, slots=True)
class Part:
    """What runs, and after how many seconds it is given up on a GPU."""

    run: Callable[[Run], Found]
    max_seconds: int


PARTS: Mapping[str, Part] = {
    "facts": Part(facts, 50),
    "decisions": Part(decisions, 60),
    "waits": Part(waits, 50),
    "two_threads": Part(two_threads, 30),
    "bandwidth": Part(bandwidth, 50),
    "cuda_graphs": Part(cuda_graphs, 80),
    "full_flux": Part(full_flux, 210),
}
