"""What an entry of the zoo is: a tiny transformer of diffusers, and how a pipeline calls it.

Data first: most entries are a configuration and a dictionary of conditioning. What a step gives the
model is told apart from what an image gives it, because the cache tells images by the latter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_HEADS, ROPE_DIMS, TEXT_DIM, finish

Inputs = dict[str, object]
BATCH = 2
NUM_TEXT_TOKENS = 6
SIZE = 4
WIDTH = NUM_HEADS * HEAD_DIM
HEADS = {"num_attention_heads": NUM_HEADS, "attention_head_dim": HEAD_DIM}
CHANNELS = {"in_channels": NUM_CHANNELS, "out_channels": NUM_CHANNELS}
ROPE = {"axes_dims_rope": ROPE_DIMS}
TOKENS = (BATCH, SIZE * SIZE, NUM_CHANNELS)
IMAGE = (BATCH, NUM_CHANNELS, 2 * SIZE, 2 * SIZE)
VIDEO = (1, NUM_CHANNELS, 2, 2 * SIZE, 2 * SIZE)


class Draw:
    """Seeded tensors of an entry's inputs, and the model that they are for."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def integers(self, stop: int, *shape: int) -> Tensor:
        return torch.randint(stop, shape, generator=self.generator)

    def text(self, batch: int = BATCH, dim: int = TEXT_DIM) -> Tensor:
        return self.normal(batch, NUM_TEXT_TOKENS, dim)


def by_thousands(latents: Tensor, level: float) -> Inputs:
    """A timestep from 1000 down to 0, as the scheduler has it."""
    return {"hidden_states": latents, "timestep": torch.full([len(latents)], 1000 * level)}


def by_whole_thousands(latents: Tensor, level: float) -> Inputs:
    timestep = torch.full([len(latents)], round(1000 * level))
    return {"hidden_states": latents, "timestep": timestep}


def by_rising_ones(latents: Tensor, level: float) -> Inputs:
    """A timestep from 0 up to 1."""
    return {"hidden_states": latents, "timestep": torch.full([len(latents)], 1 - level)}


def by_ones(latents: Tensor, level: float) -> Inputs:
    """A timestep from 1 down to 0: the pipeline divides."""
    return {"hidden_states": latents, "timestep": torch.full([len(latents)], level)}


@dataclass(frozen=True)
class Experts:
    """A method that goes by data, and what tells the sizes of its result."""

    model: type[nn.Module]
    method: str
    fake: Callable[..., Tensor]


@dataclass(frozen=True)
class Entry:
    """A tiny transformer and how to call it.

    config: what its constructor is given, without the numbers of blocks.
    depths: those numbers, by argument; multiplied by two for a model twice as deep. A list, of one
        item a block, is repeated.
    trunk: names of the module lists that carry the image to the output.
    latents: shape of what is denoised.
    conditioning: kwargs that stay the same objects for a whole image.
    step: kwargs of one step, from its latents and its noise level (1 to 0).
    stride: of the noise level in one step, small where a random model's timestep embedding is wild.
    breaks: diffusers itself can't compile it with `fullgraph=True`.
    refusal: part of what the report says of it, where it can't be cached.
    experts: what is kept whole, where nothing would be cached without.
    """

    name: str
    model: type[nn.Module]
    config: Mapping[str, object]
    depths: Mapping[str, int | list[int]]
    trunk: tuple[str, ...]
    latents: tuple[int, ...]
    conditioning: Callable[[Draw], Inputs]
    step: Callable[[Tensor, float], Inputs] = by_thousands
    stride: float = 0.005
    breaks: bool = False
    refusal: str | None = None
    experts: Experts | None = None

    def __str__(self) -> str:
        return self.name

    def keep_whole(self) -> AbstractContextManager[object]:
        """In here the model is compiled as its user is told to."""
        if self.experts is None:
            return nullcontext()
        return dc.keep_whole(self.experts.model, self.experts.method, fake=self.experts.fake)

    def build(self, times_deeper: int = 1) -> nn.Module:
        depths = {name: times_deeper * depth for name, depth in self.depths.items()}
        torch.manual_seed(0)
        return finish(self.model(**self.config, **depths), seed=0)

    def steps(self, model: nn.Module, levels: list[float], seed: int = 0) -> Iterator[Inputs]:
        """Kwargs of each step of an image whose latents go straight from noise to something."""
        draw = Draw(model, seed)
        noise, picture = draw.normal(*self.latents), draw.normal(*self.latents)
        conditioning = self.conditioning(draw)
        for level in levels:
            yield {**conditioning, **self.step(torch.lerp(picture, noise, level), level)}


def grid_ids(size: int = SIZE, num_axes: int = 3) -> Tensor:
    """Positions of a square image's tokens, (row, column) in the last two axes but zeros before."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    zeros = [torch.zeros_like(rows)] * (num_axes - 2)
    return torch.stack([*zeros, rows, columns], dim=-1).reshape(-1, num_axes).float()
