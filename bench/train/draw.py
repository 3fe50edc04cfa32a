"""Draws the training pictures: a prompted shape on a prompted ground, with much that no prompt
names.

The unnamed part (stripes, bystanders, turn, shading) is there on purpose: with a picture that its
prompt fixes, a few steps already land on it, and no cache could be told from another.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Generator, Tensor

Color = tuple[float, float, float]

SIZES: Mapping[str, float] = MappingProxyType({"small": 0.30, "medium": 0.42, "large": 0.56})
COLORS: Mapping[str, Color] = MappingProxyType(
    {
        "red": (0.90, 0.12, 0.12),
        "green": (0.10, 0.75, 0.20),
        "blue": (0.15, 0.25, 0.95),
        "yellow": (0.95, 0.85, 0.10),
        "purple": (0.60, 0.15, 0.80),
        "orange": (0.98, 0.50, 0.05),
        "white": (0.97, 0.97, 0.97),
        "black": (0.04, 0.04, 0.04),
    }
)
SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")
PLACES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"center": (0, 0), "left": (-0.4, 0), "right": (0.4, 0), "top": (0, -0.4), "bottom": (0, 0.4)}
)
GROUNDS: Mapping[str, Color] = MappingProxyType(
    {
        "gray": (0.50, 0.50, 0.50),
        "teal": (0.10, 0.50, 0.50),
        "pink": (0.95, 0.70, 0.75),
        "brown": (0.45, 0.30, 0.15),
        "navy": (0.08, 0.08, 0.35),
        "beige": (0.93, 0.88, 0.75),
    }
)
WORDS = ("a", "on", "at", *SIZES, *COLORS, *SHAPES, *PLACES, *GROUNDS)
SIDE = 32  # pixels
EMBED_DIM = 32
NUM_BYSTANDERS = 3
FULL_TURN = 6.283  # radians; 3.1416 for pi below: the shipped model was trained on these digits


def word_table() -> Tensor:
    """[len(WORDS), EMBED_DIM] fixed random embeddings: the whole text encoder."""
    return torch.randn(len(WORDS), EMBED_DIM, generator=Generator().manual_seed(1234))


def pixel_grid() -> tuple[Tensor, Tensor]:
    """x and y of every pixel in [-1, 1], each [1, SIDE, SIDE]."""
    line = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def coverage(shape: Tensor, radius: Tensor, place: Tensor, turn: Tensor) -> Tensor:
    """[B, 1, SIDE, SIDE] soft mask of one shape a picture; `turn` in radians."""
    x, y = pixel_grid()
    x, y = x - place[:, 0, None, None], y - place[:, 1, None, None]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    distances = _distances(x, y, radius[:, None, None])
    chosen = distances[torch.arange(len(shape)), shape]
    return torch.sigmoid(-chosen * SIDE * 1.2)[:, None]


def _distances(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """[B, len(SHAPES), SIDE, SIDE]: negative inside each shape, in its own frame."""
    from_centre = (x * x + y * y).sqrt()
    upright = torch.maximum(x.abs() - 0.28 * r, y.abs() - r)
    lying = torch.maximum(y.abs() - 0.28 * r, x.abs() - r)
    return torch.stack(
        [
            from_centre - r,
            torch.maximum(x.abs(), y.abs()) - 0.85 * r,
            torch.maximum(0.9 * x.abs() - 0.45 * y - 0.45 * r, y - 0.7 * r),
            (from_centre - 0.8 * r).abs() - 0.22 * r,
            torch.minimum(upright, lying),
            x.abs() + y.abs() - 1.1 * r,
        ],
        1,
    )


class Dice:
    """Random numbers for `count` pictures. The order of the throws is part of the data."""

    def __init__(self, count: int, generator: Generator) -> None:
        self.count, self.generator = count, generator

    def pick(self, num_choices: int) -> Tensor:
        """[B] integers below `num_choices`."""
        return torch.randint(0, num_choices, (self.count,), generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        """[B, *shape] in [0, 1)."""
        return torch.rand(self.count, *shape, generator=self.generator)


def stripes(dice: Dice) -> Tensor:
    """[B, 1, SIDE, SIDE] waves of any direction, width and phase, in [-1, 1]."""
    x, y = pixel_grid()
    angle, phase = (dice.rand(1, 1) * FULL_TURN for _ in range(2))
    waves = 1.5 + 4.5 * dice.rand(1, 1)
    return torch.sin(3.1416 * waves * (x * angle.cos() + y * angle.sin()) + phase)[:, None]


def sample(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, SIDE, SIDE] in [-1, 1] and their prompts as word indices [B, 8]."""
    dice = Dice(count, generator)
    columns = [tuple(SIZES), tuple(COLORS), SHAPES, tuple(PLACES), tuple(GROUNDS)]
    picks = [dice.pick(len(words)) for words in columns]
    size, color, shape, place, ground = picks
    x, y = pixel_grid()
    light = dice.rand(1, 1, 1) * FULL_TURN
    slope = x * light[:, 0].cos() + y * light[:, 0].sin()
    picture = _rows(GROUNDS.values(), ground)[:, :, None, None] * (1 + 0.2 * slope)[:, None]
    picture = picture + 0.16 * dice.rand(1, 1, 1) * stripes(dice)
    picture = _with_bystanders(picture, dice)
    radius = _rows(SIZES.values(), size) * (0.9 + 0.2 * dice.rand())
    centre = _rows(PLACES.values(), place) + 0.16 * dice.rand(2) - 0.08
    mask = coverage(shape, radius, centre, 0.7 * dice.rand() - 0.35)
    body = _rows(COLORS.values(), color)[:, :, None, None] * (1 - 0.25 * slope)[:, None]
    body = body + 0.10 * dice.rand(1, 1, 1) * stripes(dice)
    picture = mask * body + (1 - mask) * picture
    return picture.clamp(0, 1) * 2 - 1, _prompts(columns, picks)


def _rows(values: Iterable[object], chosen: Tensor) -> Tensor:
    return torch.tensor(list(values))[chosen]


def _with_bystanders(picture: Tensor, dice: Dice) -> Tensor:
    """Small shapes anywhere and of any colour, each there half the time."""
    for _ in range(NUM_BYSTANDERS):
        mask = coverage(
            dice.pick(len(SHAPES)),
            0.10 + 0.10 * dice.rand(),
            1.8 * dice.rand(2) - 0.9,
            FULL_TURN * dice.rand(),
        )
        mask = mask * (dice.rand(1, 1, 1) < 0.5)
        color = _rows(COLORS.values(), dice.pick(len(COLORS)))[:, :, None, None]
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
