"""Draws the pictures of the text-to-image models: 64 x 64, a named shape on waves.

Unnamed on purpose: light, the waves of the ground, where exactly the shape is and how it is turned,
and in busy scenes bystanders. A picture that its prompt fixes is there after a few steps, and then
no cache could be told from another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from bench.train.strokes import (
    COLORS,
    FULL_TURN,
    GROUNDS,
    SHAPES,
    Dice,
    add_bystander,
    colored,
    distance,
    pixel_grid,
    rows,
    soft,
    stripes,
)
from bench.train.world import World

SIDE = 64  # pixels
SIZE_WORDS = ("small", "medium", "large")
FINISHES = ("plain", "striped", "dotted", "framed")
PLACES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "center": (0.0, 0.0),
        "left": (-1.0, 0.0),
        "right": (1.0, 0.0),
        "top": (0.0, -1.0),
        "bottom": (0.0, 1.0),
        "topleft": (-1.0, -1.0),
        "topright": (1.0, -1.0),
        "bottomleft": (-1.0, 1.0),
        "bottomright": (1.0, 1.0),
    }
)


@dataclass(frozen=True, slots=True)
class Style:
    """How hard scenes are to draw. `radii` of the three sizes and `aside`, how far a place is from
    the middle, are in half sides, `most_turn` in radians, `dots` in radians a half side."""

    radii: tuple[float, float, float]
    aside: float
    most_turn: float
    num_bystanders: int
    dots: float
    dots_are_centred: bool


CLEAR = Style((0.34, 0.46, 0.58), 0.42, 0.1, 0, 16, dots_are_centred=True)
BUSY = Style((0.28, 0.40, 0.54), 0.45, 0.35, 2, 19, dots_are_centred=False)


def draw(style: Style, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 64, 64] in [-1, 1], and picks [B, 6] in the order of `SLOTS`."""
    dice = Dice(count, generator)
    picks = [dice.pick(len(words)) for words in SLOTS.values()]
    size, finish, color, shape, place, ground = picks
    picture = colored(GROUNDS, ground, dice, SIDE)
    picture = picture + 0.16 * dice.rand(1, 1, 1) * stripes(dice, SIDE)
    for _ in range(style.num_bystanders):
        picture = add_bystander(picture, dice, 0.08, 0.15)
    radius = rows(style.radii, size) * (0.92 + 0.16 * dice.rand())
    centre = style.aside * rows(PLACES.values(), place) + 0.12 * dice.rand(2) - 0.06
    turn = 2 * style.most_turn * dice.rand() - style.most_turn
    from_edge = distance(shape, radius, centre, turn, SIDE)
    body = colored(COLORS, color, dice, SIDE)
    body = _finished(body, finish, _inks(style, from_edge, centre, dice))
    mask = soft(from_edge)
    picture = mask * body + (1 - mask) * picture
    return picture.clamp(0, 1) * 2 - 1, torch.stack(picks, 1)


def _finished(body: Tensor, finish: Tensor, inks: Tensor) -> Tensor:
    """The body with what its finish adds, in black on bright bodies and in white on dark ones."""
    ink = (body.mean((1, 2, 3), keepdim=True) < 0.3).float()
    amount = inks[torch.arange(len(finish), device=finish.device), finish]
    return amount * ink + (1 - amount) * body


def _inks(style: Style, from_edge: Tensor, centre: Tensor, dice: Dice) -> Tensor:
    """[B, finishes, 1, 64, 64]: how much ink each finish would put where."""
    x, y = pixel_grid(SIDE, centre.device)
    shift = dice.rand(2, 1, 1) * FULL_TURN
    if style.dots_are_centred:
        shift = FULL_TURN / 4 - style.dots * centre[..., None, None]
    bands = torch.sigmoid(8 * stripes(dice, SIDE, 5.0, 6.0))
    dots = torch.sin(style.dots * x + shift[:, 0]) * torch.sin(style.dots * y + shift[:, 1])
    return torch.stack(
        [
            torch.zeros_like(bands),
            0.6 * bands,
            0.9 * torch.sigmoid(12 * (dots[:, None] - 0.35)),
            0.9 * (1 - soft(from_edge + 0.09)),
        ],
        1,
    )


SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "size": SIZE_WORDS,
        "finish": FINISHES,
        "color": tuple(COLORS),
        "shape": SHAPES,
        "place": tuple(PLACES),
        "ground": tuple(GROUNDS),
    }
)
TEMPLATE = "a {size} {finish} {color} {shape} at {place} on {ground}"
SCENES = World(TEMPLATE, SLOTS, partial(draw, CLEAR))
BUSY_SCENES = World(TEMPLATE, SLOTS, partial(draw, BUSY))
