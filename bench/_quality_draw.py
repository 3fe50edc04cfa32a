"""Draws a model by each kind of method, and says which share of its block computations ran."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

import dit_cachegraph
from bench._quality_models import QualityModel
from bench._quality_solvers import euler
from dit_cachegraph.backend import cachedit

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures in [0, 1], and the share of block computations that ran, of those of all uncached
    steps; `curve` is that share at each step of the last batch, a mean over branches."""

    pictures: Tensor
    share: float
    curve: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Artist:
    """One model, drawn again and again; `ours` is compiled once and for all settings. Uncached
    pictures are kept in `folder`."""

    model: QualityModel
    num_pictures: int
    batch: int
    folder: Path
    ours: DiffusionPipeline

    @property
    def batches(self) -> list[range]:
        """Which pictures are drawn together."""
        everything = range(self.num_pictures)
        return [everything[i : i + self.batch] for i in everything[:: self.batch]]

    @property
    def of_first_batch(self) -> "Artist":
        """The same, but fewer pictures."""
        return replace(self, num_pictures=len(self.batches[0]))

    def draw(self, pipe: DiffusionPipeline, num_steps: int) -> Tensor:
        """All pictures by one pipeline, batch by batch."""
        return torch.cat([self.model.draw(pipe, which, num_steps) for which in self.batches])

    def uncached(self, num_steps: int) -> Tensor:
        """All pictures in so many steps of Euler, drawn or read from where a run drew them."""
        path = self.folder / f"{self.model.name}-{self.num_pictures}-{num_steps}.pt"
        if not path.exists():
            print(f"{self.model.name}: draws {self.num_pictures} pictures in {num_steps} steps")
            torch.save(by_solver(self, euler(), num_steps, num_steps).pictures, path)
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
    pipe.transformer.compile(backend=cachedit, options={"inner_backend": "eager"})
    return Artist(model, num_pictures, batch, folder, pipe)


def by_solver(artist: Artist, scheduler: SchedulerMixin, num_steps: int, of_steps: int) -> Drawn:
    """Uncached, with fewer steps."""
    pipe = artist.model.load()
    pipe.scheduler = scheduler
    pictures = artist.draw(pipe, num_steps)
    return Drawn(pictures, num_steps / of_steps, (1.0,) * num_steps)


def by_ours(artist: Artist, settings: Settings, num_steps: int) -> Drawn:
    """With these settings over the defaults."""
    pipe = artist.ours
    dit_cachegraph.reset(pipe)
    num_blocks_before = dit_cachegraph.summary(pipe).num_blocks_run
    with dit_cachegraph.request("quality", **settings):
        pictures = artist.draw(pipe, num_steps)
    report = dit_cachegraph.summary(pipe)
    share = (report.num_blocks_run - num_blocks_before) / artist.num_blocks_uncached(
        pipe, num_steps
    )
    num_blocks = len(blocks_of(pipe))
    skipped = [sum(stop - start for start, stop in step.skipped) for step in report.steps]
    curve = [1 - blocks / num_blocks for blocks in skipped]
    return Drawn(pictures, share, _last_batch(artist, curve, num_steps))


def by_pipeline(artist: Artist, pipe: DiffusionPipeline, num_steps: int) -> Drawn:
    """By a pipeline that somebody else's cache is in already; its blocks are counted."""
    with _counted(pipe) as calls:
        pictures = artist.draw(pipe, num_steps)
    share = sum(calls) / artist.num_blocks_uncached(pipe, num_steps)
    curve = [num_blocks / len(blocks_of(pipe)) for num_blocks in calls]
    # Sums of shares of a block are off in the last digits.
    return Drawn(pictures, round(share, 6), _last_batch(artist, curve, num_steps))


def _last_batch(artist: Artist, curve: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """Means over branches, from a share a call."""
    num_branches = artist.model.num_branches
    last = curve[-num_steps * num_branches :]
    starts = range(0, len(last), num_branches)
    return tuple(sum(last[i : i + num_branches]) / num_branches for i in starts)


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
