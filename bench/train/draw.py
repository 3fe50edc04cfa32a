"""Draws the 32 x 32 pictures that the demo's model was trained on: a prompted shape on a prompted
ground, with much that no prompt names.

The unnamed part (stripes, bystanders, turn, shading) is there on purpose: with a picture that its
prompt fixes, a few steps already land on it, and no cache could be told from another.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from bench.train.strokes import (
    COLORS,
    FULL_TURN,
    GROUNDS,
    SHAPES,
    Dice,
    distance,
    pixel_grid,
    rows,
    soft,
    stripes,
)

SIZES: Mapping[str, float] = MappingProxyType({"small": 0.30, "medium": 0.42, "large": 0.56})
PLACES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"center": (0, 0), "left": (-0.4, 0), "right": (0.4, 0), "top": (0, -0.4), "bottom": (0, 0.4)}
)
WORDS = ("a", "on", "at", *SIZES, *COLORS, *SHAPES, *PLACES, *GROUNDS)
SIDE = 32  # pixels
EMBED_DIM = 32
NUM_BYSTANDERS = 3


def word_table() -> Tensor:
    """[len(WORDS), EMBED_DIM] fixed random embeddings: the whole text encoder."""
    return torch.randn(len(WORDS), EMBED_DIM, generator=Generator().manual_seed(1234))


def sample(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, SIDE, SIDE] in [-1, 1] and their prompts as word indices [B, 8]."""
    dice = Dice(count, generator)
    columns = [tuple(SIZES), tuple(COLORS), SHAPES, tuple(PLACES), tuple(GROUNDS)]
    picks = [dice.pick(len(words)) for words in columns]
    size, color, shape, place, ground = picks
    x, y = pixel_grid(SIDE, torch.device("cpu"))
    light = dice.rand(1, 1, 1) * FULL_TURN
    slope = x * light[:, 0].cos() + y * light[:, 0].sin()
    picture = rows(GROUNDS.values(), ground)[:, :, None, None] * (1 + 0.2 * slope)[:, None]
    picture = picture + 0.16 * dice.rand(1, 1, 1) * stripes(dice, SIDE)
    picture = _with_bystanders(picture, dice)
    radius = rows(SIZES.values(), size) * (0.9 + 0.2 * dice.rand())
    centre = rows(PLACES.values(), place) + 0.16 * dice.rand(2) - 0.08
    mask = soft(distance(shape, radius, centre, 0.7 * dice.rand() - 0.35, SIDE))
    body = rows(COLORS.values(), color)[:, :, None, None] * (1 - 0.25 * slope)[:, None]
    body = body + 0.10 * dice.rand(1, 1, 1) * stripes(dice, SIDE)
    picture = mask * body + (1 - mask) * picture
    return picture.clamp(0, 1) * 2 - 1, _prompts(columns, picks)


def _with_bystanders(picture: Tensor, dice: Dice) -> Tensor:
    """Small shapes anywhere and of any colour, each there half the time."""
    for _ in range(NUM_BYSTANDERS):
        shape, radius = dice.pick(len(SHAPES)), 0.10 + 0.10 * dice.rand()
        place, turn = 1.8 * dice.rand(2) - 0.9, FULL_TURN * dice.rand()
        mask = soft(distance(shape, radius, place, turn, SIDE))
        mask = mask * (dice.rand(1, 1, 1) < 0.5)
        color = rows(COLORS.values(), dice.pick(len(COLORS)))[:, :, None, None]
        picture = mask * color + (1 - mask) * picture
    return picture


def _prompts(columns: Sequence[Sequence[str]], picks: Sequence[Tensor]) -> Tensor:
    """[B, 8]: "a {size} {colour} {shape} at {place} on {ground}" as indices into WORDS."""
    size, color, shape, place, ground = (
        torch.tensor([WORDS.index(word) for word in words])[chosen]
        for words, chosen in zip(columns, picks, strict=True)
    )
    a, at, on = (torch.full_like(size, WORDS.index(word)) for word in ("a", "at", "on"))
    return torch.stack([a, size, color, shape, at, place, on, ground], 1)


def pack(pictures: Tensor) -> Tensor:
    """[B, 3, SIDE, SIDE] -> [B, 64, 48]: pixel_unshuffle(2), then 2 x 2 packing as FluxPipeline
    packs latents."""
    latents = torch.nn.functional.pixel_unshuffle(pictures, 2)
    b, c, h, w = latents.shape
    split = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(b, h * w // 4, c * 4)


def unpack(tokens: Tensor) -> Tensor:
    """[B, 64, 48] -> [B, 3, SIDE, SIDE], the inverse of `pack`."""
    b, _, d = tokens.shape
    h = SIDE // 4
    split = tokens.view(b, h, h, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return torch.nn.functional.pixel_shuffle(split.reshape(b, d // 4, 2 * h, 2 * h), 2)


def image_ids() -> Tensor:
    """[64, 3] position ids of the tokens, as FluxPipeline makes them."""
    h = SIDE // 4
    ids = torch.zeros(h, h, 3)
    ids[..., 1] += torch.arange(h)[:, None]
    ids[..., 2] += torch.arange(h)[None]
    return ids.view(-1, 3)
