"""Draws the pictures of the text-to-image model: 64 x 64, a named shape among unnamed ones.

Unnamed on purpose: turn, light, bystanders, and the waves of the ground. A picture that its prompt
fixes is there after a few steps, and then no cache could be told from another.
"""

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
SIZES = MappingProxyType({"small": 0.28, "medium": 0.40, "large": 0.54})
FINISHES = ("plain", "striped", "dotted", "framed")
ASIDE = 0.45  # from the middle, in half sides
PLACES = MappingProxyType(
    {
        "center": (0.0, 0.0),
        "left": (-ASIDE, 0.0),
        "right": (ASIDE, 0.0),
        "top": (0.0, -ASIDE),
        "bottom": (0.0, ASIDE),
        "topleft": (-ASIDE, -ASIDE),
        "topright": (ASIDE, -ASIDE),
        "bottomleft": (-ASIDE, ASIDE),
        "bottomright": (ASIDE, ASIDE),
    }
)
NUM_BYSTANDERS = 2


def draw(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, 64, 64] in [-1, 1], and picks [B, 6] in the order of `SCENES.slots`."""
    dice = Dice(count, generator)
    picks = [dice.pick(len(words)) for words in SCENES.slots.values()]
    size, finish, color, shape, place, ground = picks
    picture = colored(GROUNDS, ground, dice, SIDE)
    picture = picture + 0.16 * dice.rand(1, 1, 1) * stripes(dice, SIDE)
    for _ in range(NUM_BYSTANDERS):
        picture = add_bystander(picture, dice, 0.08, 0.15)
    radius = rows(SIZES.values(), size) * (0.92 + 0.16 * dice.rand())
    centre = rows(PLACES.values(), place) + 0.12 * dice.rand(2) - 0.06
    from_edge = distance(shape, radius, centre, 0.7 * dice.rand() - 0.35, SIDE)
    body = _finished(colored(COLORS, color, dice, SIDE), finish, from_edge, dice)
    mask = soft(from_edge)
    picture = mask * body + (1 - mask) * picture
    return picture.clamp(0, 1) * 2 - 1, torch.stack(picks, 1)


def _finished(body: Tensor, finish: Tensor, from_edge: Tensor, dice: Dice) -> Tensor:
    """The body with what its finish adds, in black on bright bodies and in white on dark ones."""
    ink = (body.mean((1, 2, 3), keepdim=True) < 0.3).float()
    x, y = pixel_grid(SIDE, body.device)
    shift = dice.rand(2, 1, 1) * FULL_TURN
    bands = torch.sigmoid(8 * stripes(dice, SIDE, 5.0, 6.0))
    dots = torch.sin(19 * x + shift[:, 0]) * torch.sin(19 * y + shift[:, 1])
    inks = torch.stack(
        [
            torch.zeros_like(bands),
            0.6 * bands,
            0.9 * torch.sigmoid(12 * (dots[:, None] - 0.35)),
            0.9 * (1 - soft(from_edge + 0.09)),
        ],
        1,
    )
    amount = inks[torch.arange(len(finish), device=finish.device), finish]
    return amount * ink + (1 - amount) * body


SCENES = World(
    template="a {size} {finish} {color} {shape} at {place} on {ground}",
    slots=MappingProxyType(
        {
            "size": tuple(SIZES),
            "finish": FINISHES,
            "color": tuple(COLORS),
            "shape": SHAPES,
            "place": tuple(PLACES),
            "ground": tuple(GROUNDS),
        }
    ),
    draw=draw,
)
