"""Draws a model by each kind of method, and says which share of its block computations ran."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import FluxPipeline, SchedulerMixin
from torch import Tensor, nn

import dit_cachegraph
from bench._quality_models import QualityModel
from dit_cachegraph.backend import cachedit

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures [B, 3, H, W] in [0, 1] 0 to B - 1, and the share of block computations
    that ran, of those of `num_steps` uncached steps."""

    pictures: Tensor
    share: float


@dataclass(frozen=True, slots=True)
class Artist:
    """One model, drawn again and again; `ours` is compiled once and for all settings."""

    model: QualityModel
    num_pictures: int
    ours: FluxPipeline

    def draw(self, pipe: FluxPipeline, num_steps: int) -> Tensor:
        """All pictures by one pipeline, picture by picture."""
        with torch.no_grad():
            pictures = [self.model.draw(pipe, i, num_steps) for i in range(self.num_pictures)]
        return torch.cat(pictures)

    def num_blocks_uncached(self, pipe: FluxPipeline, num_steps: int) -> int:
        """How many blocks run in all pictures."""
        return len(_blocks(pipe)) * num_steps * self.model.num_branches * self.num_pictures


def artist_for(model: QualityModel, num_pictures: int) -> Artist:
    """Ready to draw; what compiles does so at the first picture."""
    pipe = model.load()
    # The function and not its name, which only an installed package has an entry point for.
    pipe.transformer.compile(backend=cachedit, options={"inner_backend": "eager"})
    return Artist(model, num_pictures, pipe)


def by_solver(artist: Artist, scheduler: SchedulerMixin, num_steps: int, of_steps: int) -> Drawn:
    """Uncached, with fewer steps."""
    pipe = artist.model.load()
    pipe.scheduler = scheduler
    return Drawn(artist.draw(pipe, num_steps), num_steps / of_steps)


def by_ours(artist: Artist, settings: Settings, num_steps: int) -> Drawn:
    """With these settings over the defaults."""
    pipe = artist.ours
    dit_cachegraph.reset(pipe)
    num_blocks_before = dit_cachegraph.summary(pipe).num_blocks_run
    with dit_cachegraph.request("quality", **settings):
        pictures = artist.draw(pipe, num_steps)
    num_blocks = dit_cachegraph.summary(pipe).num_blocks_run - num_blocks_before
    return Drawn(pictures, num_blocks / artist.num_blocks_uncached(pipe, num_steps))


def by_pipeline(artist: Artist, pipe: FluxPipeline, num_steps: int) -> Drawn:
    """By a pipeline that somebody else's cache is in already; its blocks are counted."""
    with _counted(pipe) as num_blocks_run:
        pictures = artist.draw(pipe, num_steps)
    share = num_blocks_run() / artist.num_blocks_uncached(pipe, num_steps)
    # Sums of shares of a block are off in the last digits.
    return Drawn(pictures, round(share, 6))


def _blocks(pipe: FluxPipeline) -> list[nn.Module]:
    transformer = pipe.transformer
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


@contextmanager
def _counted(pipe: FluxPipeline) -> Iterator[Callable[[], float]]:
    """Counts blocks by their linear layers, each as its share of its block's weights: a cache that
    skips the attention of a block and runs the rest has run a part of it. Hooks of diffusers keep
    calling a block or its attention where they skip what is in it, but not the layers."""
    num_blocks_run = 0.0

    def add(share: float) -> Callable[..., None]:
        def hook(*_: object) -> None:
            nonlocal num_blocks_run
            num_blocks_run += share

        return hook

    handles = []
    for block in _blocks(pipe):
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        num_weights = sum(layer.weight.numel() for layer in layers)
        handles += [
            layer.register_forward_hook(add(layer.weight.numel() / num_weights)) for layer in layers
        ]
    try:
        yield lambda: num_blocks_run
    finally:
        for handle in handles:
            handle.remove()
