"""Draws a model by each kind of method, and says which share of its block computations ran."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

import dit_cachegraph
from bench.common.whole_file import save_whole
from bench.quality.models import QualityModel
from dit_cachegraph.backend import cachedit
from dit_cachegraph.step_log import StepReport

Settings = Mapping[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures in [0, 1], and the share of block computations that ran, of those of all uncached
    steps. For each batch `curves` has that share at each step, a mean over branches, and `seen`
    what was compared there, the most of all branches; empty where it isn't known."""

    pictures: Tensor
    share: float
    curves: Sequence[Sequence[float]] = ()
    seen: Sequence[Sequence[float | None]] = ()


@dataclass(frozen=True, slots=True)
class Artist:
    """One model, drawn again and again; `ours` is compiled once and for all settings. Uncached
    pictures are kept in `folder`. `first_picture` is where the pictures begin among the model's."""

    model: QualityModel
    num_pictures: int
    batch: int
    folder: Path
    ours: DiffusionPipeline
    first_picture: int = 0

    @property
    def batches(self) -> list[range]:
        """Which pictures are drawn together."""
        everything = range(self.first_picture, self.first_picture + self.num_pictures)
        return [everything[i : i + self.batch] for i in range(0, self.num_pictures, self.batch)]

    @property
    def of_first_batch(self) -> "Artist":
        """The same, but fewer pictures."""
        return replace(self, num_pictures=len(self.batches[0]))

    def draw(self, pipe: DiffusionPipeline, num_steps: int) -> Tensor:
        """All pictures by one pipeline, batch by batch."""
        return torch.cat([self.model.draw(pipe, which, num_steps) for which in self.batches])

    def uncached(self, num_steps: int) -> Tensor:
        """All pictures in so many steps of the model's solver, drawn or read from where a run
        drew them."""
        # The batch too: a picture differs in its last digits by how many are drawn beside it.
        count = f"{self.num_pictures}-by-{self.batch}"
        if self.first_picture:
            count = f"{self.first_picture}+{count}"
        path = self.folder / f"{self.model.name}-{self.model.version}-{count}-{num_steps}.pt"
        if not path.exists():
            print(f"{self.model.name}: draws {self.num_pictures} pictures in {num_steps} steps")
            save_whole(by_solver(self, self.model.solver(), num_steps, num_steps).pictures, path)
        pictures: Tensor = torch.load(path)
        return pictures

    def num_blocks_uncached(self, pipe: DiffusionPipeline, num_steps: int) -> int:
        """How many blocks run in all pictures, counting a batch as one."""
        num_calls = num_steps * self.model.num_branches * len(self.batches)
        return len(blocks_of(pipe)) * num_calls


def artist_for(model: QualityModel, num_pictures: int, batch: int, folder: Path) -> Artist:
    """Ready to draw; what compiles does so at the first picture."""
    pipe = model.load()
    # The function and not its name, which only an installed package has an entry point for.
    for name in ("transformer", "transformer_2"):
        if (part := pipe.components.get(name)) is not None:
            part.compile(backend=cachedit, options={"inner_backend": "eager"})
    return Artist(model, num_pictures, batch, folder, pipe)


def sampled_by(artist: Artist, scheduler: SchedulerMixin) -> Artist:
    """The same model, compiled once for both, with another solver for ours."""
    pipe = artist.ours
    other = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    other.set_progress_bar_config(disable=True)
    return replace(artist, ours=other)


def by_solver(artist: Artist, scheduler: SchedulerMixin, num_steps: int, of_steps: int) -> Drawn:
    """Uncached, with fewer steps."""
    pipe = artist.model.load()
    pipe.scheduler = scheduler
    pictures = artist.draw(pipe, num_steps)
    return Drawn(pictures, num_steps / of_steps, [(1.0,) * num_steps] * len(artist.batches))


def by_ours(artist: Artist, settings: Settings, num_steps: int) -> Drawn:
    """With these settings over the defaults."""
    pipe = artist.ours
    dit_cachegraph.reset(pipe)
    num_blocks_before = dit_cachegraph.summary(pipe).num_blocks_run
    with dit_cachegraph.request("quality", **settings):
        pictures = artist.draw(pipe, num_steps)
    report = dit_cachegraph.summary(pipe)
    num_blocks_run = report.num_blocks_run - num_blocks_before
    curves, seen = _by_step(artist, report.steps, num_steps)
    share = num_blocks_run / artist.num_blocks_uncached(pipe, num_steps)
    return Drawn(pictures, share, curves, seen)


def by_pipeline(artist: Artist, pipe: DiffusionPipeline, num_steps: int) -> Drawn:
    """By a pipeline that somebody else's cache is in already; its blocks are counted."""
    with _counted(pipe) as calls:
        pictures = artist.draw(pipe, num_steps)
    share = sum(calls) / artist.num_blocks_uncached(pipe, num_steps)
    num_blocks = len(blocks_of(pipe))
    curves = [
        [statistics.fmean(branches) / num_blocks for branches in image]
        for image in _nested(calls, artist, num_steps)
    ]
    # Sums of shares of a block are off in the last digits.
    return Drawn(pictures, round(share, 6), curves)


def _by_step(
    artist: Artist, calls: Sequence[StepReport], num_steps: int
) -> tuple[list[list[float]], list[list[float | None]]]:
    """Curves and what was seen; none where the report has forgotten the first of them."""
    num_blocks = len(blocks_of(artist.ours))
    images = _nested(calls, artist, num_steps)
    curves = [
        [1 - statistics.fmean(map(_num_skipped, branches)) / num_blocks for branches in image]
        for image in images
    ]
    seen = [[_most_seen(branches) for branches in image] for image in images]
    return curves, seen


def _num_skipped(call: StepReport) -> int:
    return sum(stop - start for start, stop in call.skipped)


def _most_seen(branches: Sequence[StepReport]) -> float | None:
    values = [call.observed_error if call.diff is None else call.diff for call in branches]
    return max((value for value in values if value is not None), default=None)


def _nested(calls: Sequence[T], artist: Artist, num_steps: int) -> list[list[Sequence[T]]]:
    """[batch][step][branch], of the last calls."""
    num_branches = artist.model.num_branches
    num_a_batch = num_steps * num_branches
    num_calls = num_a_batch * len(artist.batches)
    last = calls[-num_calls:] if len(calls) >= num_calls else ()
    batches = [last[i : i + num_a_batch] for i in range(0, len(last), num_a_batch)]
    return [
        [batch[i : i + num_branches] for i in range(0, num_a_batch, num_branches)]
        for batch in batches
    ]


def blocks_of(pipe: DiffusionPipeline) -> list[nn.Module]:
    """Those of all lists of blocks of the transformer."""
    children = pipe.transformer.children()
    return [block for child in children if isinstance(child, nn.ModuleList) for block in child]


@contextmanager
def _counted(pipe: DiffusionPipeline) -> Iterator[list[float]]:
    """Counts blocks call by call, by their linear layers, each as its share of its block's weights:
    a cache that skips the attention of a block and runs the rest has run a part of it. Hooks of
    diffusers keep calling a block or its attention where they skip what is in it, but not the
    layers."""
    calls: list[float] = []

    def add(share: float) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[-1] += share

        return hook

    handles = [pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(0.0))]
    for block in blocks_of(pipe):
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        num_weights = sum(layer.weight.numel() for layer in layers)
        handles += [
            layer.register_forward_hook(add(layer.weight.numel() / num_weights)) for layer in layers
        ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
