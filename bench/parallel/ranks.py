"""Two processes that draw images together, as one engine: each has half of the tokens (Ulysses)."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, ModelMixin
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

import dit_cachegraph
from bench.common.threads import use_one_thread
from bench.speed.engines import CACHE_SETTINGS, CACHEDIT, Model
from bench.speed.flux import NUM_IMAGE_STEPS, Depth, Inputs, Preset, build_model, make_image
from dit_cachegraph.backend import cachedit
from dit_cachegraph.ranks.group import Ranks
from dit_cachegraph.ranks.together import Meetings

NUM_RANKS = 2
NUM_WARM_IMAGES = 2
NUM_GATHERS = 200
TIMEOUT = timedelta(minutes=10)  # One may compile for so long while the other waits.
MASK = (1, 1, 1, 1, *(0, 0, 0, 1) * 6)
HITS = tuple(i for i, computes in enumerate(MASK) if not computes)
SETTINGS = {
    **CACHE_SETTINGS,
    "residual_diff_threshold": 1e9,
    "steps_computation_mask": MASK,
    "steps_computation_policy": "dynamic",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What two ranks are to draw, by which engine, and what compiles its segments."""

    engine: str
    preset: Preset
    depth: Depth
    inner: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a rank saw of one image by itself (`alone`) and with the other (`shared`), which steps
    were reused, and which collectives ran at each step."""

    alone: tuple[NDArray[np.float32], ...]
    shared: tuple[NDArray[np.float32], ...]
    hits_alone: tuple[int, ...]
    hits: tuple[int, ...]
    collectives: tuple[dict[str, int], ...]


class Pair:
    """The two processes of one engine, which draw when they are told to."""

    def __init__(self, job: Job, folder: Path) -> None:
        context = get_context("spawn")
        self._ranks: list[Connection] = []
        for rank in range(NUM_RANKS):
            ours, theirs = context.Pipe()
            arguments = (rank, job, folder / f"store-{job.engine}", theirs)
            context.Process(target=_work, args=arguments, daemon=True).start()
            theirs.close()
            self._ranks.append(ours)

    def drawn(self) -> list[Drawn]:
        """What each rank saw, once both have compiled."""
        return [rank.recv() for rank in self._ranks]

    def draw(self) -> list[float]:
        """The seconds of each step of one more image, of the slower rank."""
        self._tell("draw")
        return list(map(max, *(rank.recv() for rank in self._ranks)))

    def gather(self, num_numbers: int) -> list[float]:
        """The seconds of gathers of so many numbers of each rank, of the slower rank."""
        self._tell(num_numbers)
        return list(map(max, *(rank.recv() for rank in self._ranks)))

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()

    def _tell(self, what: object) -> None:
        for rank in self._ranks:
            rank.send(what)


def _work(rank: int, job: Job, store: Path, parent: Connection) -> None:
    use_one_thread()
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS, timeout=TIMEOUT
    )
    if not torch.accelerator.is_available():
        torch.accelerator.device_count = lambda: 1  # diffusers divides by it
    image = make_image(job.preset)
    with torch.no_grad():
        alone = _run(_compiled(_model(job), job), image, job)
        model = _model(job)
        config = ContextParallelConfig(ulysses_degree=NUM_RANKS)
        model.enable_parallelism(config=config)
        model(**image[0])  # diffusers' hooks set themselves up
        call = _compiled(model, job)
        for _ in range(NUM_WARM_IMAGES):
            shared = _run(call, image, job)
        counted = tuple(_collectives(call, inputs) for inputs in image)
        parent.send(Drawn(alone[0], shared[0], alone[1], shared[1], counted))
        gc.collect()
        gc.freeze()
        _serve(parent, call, image)


def _serve(parent: Connection, call: Model, image: Sequence[Inputs]) -> None:
    ranks = Ranks([dist.distributed_c10d._get_default_group().group_name], Meetings())
    while True:
        try:
            told = parent.recv()
        except EOFError:
            return
        parent.send(_timed(call, image) if told == "draw" else _timed_gathers(ranks, told))


def _model(job: Job) -> ModelMixin:
    model = build_model(job.preset, job.depth)
    assert isinstance(model, ModelMixin)
    return model


def _compiled(model: ModelMixin, job: Job) -> Model:
    if job.engine != CACHEDIT:
        return torch.compile(model, backend=job.inner)
    options = {**SETTINGS, "inner_backend": job.inner}
    return torch.compile(model, backend=cachedit, options=options)  # type: ignore[arg-type]


def _run(
    call: Model, image: Sequence[Inputs], job: Job
) -> tuple[tuple[NDArray[np.float32], ...], tuple[int, ...]]:
    """What the steps of an image return, and which were reused."""
    steps = tuple(call(**inputs)[0].numpy().copy() for inputs in image)
    if job.engine != CACHEDIT:
        return steps, ()
    report = dit_cachegraph.summary(call).steps[-NUM_IMAGE_STEPS:]
    return steps, tuple(i for i, step in enumerate(report) if step.hit)


def _collectives(call: Model, inputs: Inputs) -> dict[str, int]:
    """How often each operation of torch.distributed ran in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call(**inputs)
    counts = {event.key: event.count for event in profiled.key_averages()}
    return {name: count for name, count in counts.items() if name.startswith("c10d::")}


def _timed(call: Model, image: Sequence[Inputs]) -> list[float]:
    """Seconds of each step: a rank that waits takes no CPU time."""
    seconds = []
    for inputs in image:
        dist.barrier()
        start = time.perf_counter()
        call(**inputs)
        seconds.append(time.perf_counter() - start)
    return seconds


def _timed_gathers(ranks: Ranks, num_numbers: int) -> list[float]:
    numbers, seconds = torch.zeros(num_numbers), []
    for _ in range(NUM_GATHERS):
        dist.barrier()
        start = time.perf_counter()
        ranks.gather(numbers)
        seconds.append(time.perf_counter() - start)
    return seconds
