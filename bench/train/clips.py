"""Draws the clips of the text-to-video model: 8 frames of 32 x 32, a shape that moves as told.

Unnamed on purpose: turn, light, bystanders, the waves of the ground, and how large the shape is.
"""

from types import MappingProxyType

import torch
from torch import Generator, Tensor

from bench.train.strokes import (
    COLORS,
    GROUNDS,
    SHAPES,
    Dice,
    add_bystander,
    colored,
    distance,
    rows,
    soft,
    stripes,
)
from bench.train.world import World

SIDE = 32  # pixels
NUM_FRAMES = 8
ASIDE = 0.42  # from the middle, in half sides
# Where the shape is in the middle of the clip.
PLACES = MappingProxyType(
    {
        "center": (0.0, 0.0),
        "left": (-ASIDE, 0.0),
        "right": (ASIDE, 0.0),
        "top": (0.0, -ASIDE),
        "bottom": (0.0, ASIDE),
    }
)
FAR = 0.45  # from the middle of the clip to either end
# (x, y, growth) from the middle of the clip to its end; growth is of the radius's logarithm.
MOTIONS = MappingProxyType(
    {
        "rests": (0.0, 0.0, 0.0),
        "rightward": (FAR, 0.0, 0.0),
        "leftward": (-FAR, 0.0, 0.0),
        "downward": (0.0, FAR, 0.0),
        "upward": (0.0, -FAR, 0.0),
        "grows": (0.0, 0.0, 0.55),
        "shrinks": (0.0, 0.0, -0.55),
    }
)


def draw(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Clips [B, 8, 3, 32, 32] in [-1, 1], and picks [B, 5] in the order of `CLIPS.slots`."""
    dice = Dice(count, generator)
    picks = [dice.pick(len(words)) for words in CLIPS.slots.values()]
    color, shape, place, motion, ground = picks
    still = colored(GROUNDS, ground, dice, SIDE)
    still = still + 0.16 * dice.rand(1, 1, 1) * stripes(dice, SIDE, 1.0, 4.0)
    still = add_bystander(still, dice, 0.12, 0.18)[:, None]
    body = colored(COLORS, color, dice, SIDE)[:, None]
    mask = _moving(shape, place, motion, dice)
    clip = mask * body + (1 - mask) * still
    return clip.clamp(0, 1) * 2 - 1, torch.stack(picks, 1)


def _moving(shape: Tensor, place: Tensor, motion: Tensor, dice: Dice) -> Tensor:
    """[B, 8, 1, 32, 32]: where the shape is in each frame."""
    time = torch.linspace(-1, 1, NUM_FRAMES, device=shape.device)[None, :, None]
    course = rows(MOTIONS.values(), motion)[:, None] * (0.85 + 0.3 * dice.rand(1, 1)) * time
    centre = (rows(PLACES.values(), place) + 0.12 * dice.rand(2) - 0.06)[:, None] + course[..., :2]
    radius = (0.34 + 0.1 * dice.rand(1)) * course[..., 2].exp()
    turn = (0.7 * dice.rand(1) - 0.35).expand(-1, NUM_FRAMES)
    from_edge = distance(
        shape.repeat_interleave(NUM_FRAMES),
        radius.flatten(),
        centre.flatten(0, 1),
        turn.flatten(),
        SIDE,
    )
    return soft(from_edge).unflatten(0, (-1, NUM_FRAMES))


CLIPS = World(
    template="a {color} {shape} at {place} {motion} on {ground}",
    slots=MappingProxyType(
        {
            "color": tuple(COLORS),
            "shape": SHAPES,
            "place": tuple(PLACES),
            "motion": tuple(MOTIONS),
            "ground": tuple(GROUNDS),
        }
    ),
    draw=draw,
)
