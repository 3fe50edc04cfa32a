"""Draws the same pictures with plain `torch.compile`, with the cache, and in fewer steps, and times
all three."""

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor
from torch._dynamo.backends.registry import list_backends

from dit_cachegraph.api import summary
from dit_cachegraph.backend import cachedit
from dit_cachegraph.demo.flux_scenes import draw, embed, load_pipeline, shipped_prompts
from dit_cachegraph.metrics.pixels import psnr_db
from dit_cachegraph.report import Report
from dit_cachegraph.step_log import StepReport

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from tqdm import tqdm


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What is drawn, and by which settings of the cache."""

    num_prompts: int = 16
    num_steps: int = 28
    guidance: float = 3.0
    """Classifier-free, in two passes a step; the shipped model draws best at the default."""
    num_repetitions: int = 7
    """Timed runs of each contender, after one that compiles and warms up."""
    inner_backend: str = "inductor"
    """Who compiles, for all contenders."""
    preset: str = "balanced"

    def cache_options(self) -> dict[str, object]:
        """The `options` that the cached contender is compiled with."""
        return {"inner_backend": self.inner_backend, "preset": self.preset}


@dataclass(slots=True)
class Contender:
    """One of the three: its pictures [B, 3, 64, 64] in [0, 1], and seconds a run of all pictures.
    The first run of one whose graph was compiled before, by another, is like any other."""

    pipe: "FluxPipeline"
    num_steps: int
    pictures: Tensor
    first_run_seconds: float
    run_seconds: list[float] = field(default_factory=list)

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.run_seconds)

    @property
    def compile_seconds(self) -> float:
        """What the first run took beyond a later one: Dynamo and the inner backend."""
        return self.first_run_seconds - self.median_seconds


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What all did. `fewer` is the uncached one with as many steps as the cache computed. `report`
    is `summary` of the cached one after its first run."""

    settings: DemoSettings
    prompts: list[str]
    uncached: Contender
    cached: Contender
    fewer: Contender
    report: Report

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """The cached calls, in order, each pass of guidance by itself; pictures of one batch share
        them."""
        return self.report.steps

    def psnr_db(self, contender: Contender) -> Tensor:
        """[B] of its pictures against the uncached ones; infinite where they are equal."""
        return psnr_db(contender.pictures, self.uncached.pictures)

    @property
    def share_of_blocks_run(self) -> float:
        graph = self.report.graphs[0]
        start, stop = graph.region or (0, 0)
        num_skipped = self.report.num_hits * (stop - start)
        return 1 - num_skipped / (len(self.steps) * graph.num_blocks)


def run(settings: DemoSettings) -> DemoResult:
    """Draw and time everything on one thread; a progress bar goes to stderr."""
    with _one_thread():
        return _run(settings)


def _run(settings: DemoSettings) -> DemoResult:
    prompts = shipped_prompts()[: settings.num_prompts]
    with _progress_bar(settings) as bar:
        artist = _Artist(settings, embed(prompts), bar)
        bar.set_description("start the compiler")
        _start_compiler(settings.inner_backend)
        bar.set_description("compile, uncached")
        uncached = artist.first_run(_uncached_pipeline(settings))
        bar.set_description("compile, cached")
        cached = artist.first_run(_cached_pipeline(settings))
        report = summary(cached.pipe)
        bar.set_description("draw in turn")
        fewer = artist.in_fewer_steps(uncached.pipe, steps_of_same_work(settings, report))
        for _ in range(settings.num_repetitions):
            for contender in (uncached, cached, fewer):
                artist.run_again(contender)
    return DemoResult(settings, prompts, uncached, cached, fewer, report)


def steps_of_same_work(settings: DemoSettings, report: Report) -> int:
    """How many uncached steps come nearest to the calls that the cache computed."""
    num_calls = report.num_hits + report.num_computed
    return max(1, round(settings.num_steps * report.num_computed / num_calls))


@dataclass(frozen=True, slots=True)
class _Artist:
    """Draws the embedded prompts, and takes the time."""

    settings: DemoSettings
    embeddings: Tensor
    bar: "tqdm[NoReturn]"

    def first_run(self, pipe: "FluxPipeline") -> Contender:
        """Compiles."""
        num_steps = self.settings.num_steps
        with _empty_compile_cache(self.settings.inner_backend):
            return Contender(pipe, num_steps, *self._drawn(pipe, num_steps))

    def in_fewer_steps(self, pipe: "FluxPipeline", num_steps: int) -> Contender:
        """By what is compiled already."""
        self.bar.total += (1 + self.settings.num_repetitions) * num_steps
        return Contender(pipe, num_steps, *self._drawn(pipe, num_steps))

    def run_again(self, contender: Contender) -> None:
        """Notes the seconds of one more run."""
        contender.run_seconds.append(self._drawn(contender.pipe, contender.num_steps)[1])

    def _drawn(self, pipe: "FluxPipeline", num_steps: int) -> tuple[Tensor, float]:
        start = time.perf_counter()
        tokens = draw(
            pipe,
            self.embeddings,
            num_steps=num_steps,
            guidance=self.settings.guidance,
            on_step=self.bar.update,
        )
        return (tokens.clamp(-1, 1) + 1) / 2, time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    """A model this small gains little from a second thread, and where another program has that core
    each of its thousands of kernels waits: runs took from 1 to 76 seconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _start_compiler(inner_backend: str) -> None:
    """What only the first compilation of a process pays, such as imports and worker processes, is
    no one's share of `compile_seconds`."""
    with _empty_compile_cache(inner_backend), torch.no_grad():
        torch.compile(torch.nn.Linear(8, 8), backend=inner_backend)(torch.ones(1, 8))


def _uncached_pipeline(settings: DemoSettings) -> "FluxPipeline":
    pipe = load_pipeline()
    pipe.transformer.compile(backend=settings.inner_backend)
    return pipe


def _cached_pipeline(settings: DemoSettings) -> "FluxPipeline":
    pipe = load_pipeline()
    # The name is known once the package is installed; a bare checkout has the function only.
    backend = "cachedit" if "cachedit" in list_backends() else cachedit
    pipe.transformer.compile(backend=backend, options=settings.cache_options())
    return pipe


def _empty_compile_cache(inner_backend: str) -> AbstractContextManager[None]:
    """Without it, the second contender and the second demo would find compiled code on disk."""
    if inner_backend != "inductor":
        return nullcontext()
    # Importing Inductor takes seconds, and other backends do without it.
    from torch._inductor.utils import fresh_cache  # noqa: PLC0415

    return fresh_cache()


def _progress_bar(settings: DemoSettings) -> "tqdm[NoReturn]":
    """Counts the steps of the two that take all of them; the third's aren't known yet."""
    # Optional.
    from tqdm import tqdm  # noqa: PLC0415

    num_steps = 2 * (1 + settings.num_repetitions) * settings.num_steps
    return tqdm(total=num_steps, unit="step", mininterval=0.5)
