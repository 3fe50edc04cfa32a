"""What every drawing is made of: colours, shapes as signed distances, waves, and dice.

All is drawn on the device of the dice's generator.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Generator, Tensor

Color = tuple[float, float, float]

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
FULL_TURN = 6.283  # radians; 3.1416 for pi below: the demo's model was trained on these digits


class Dice:
    """Random numbers for `count` drawings. The order of the throws is part of the data."""

    def __init__(self, count: int, generator: Generator) -> None:
        self.count, self.generator = count, generator

    def pick(self, num_choices: int) -> Tensor:
        """[B] integers below `num_choices`."""
        return torch.randint(
            0, num_choices, (self.count,), generator=self.generator, device=self.generator.device
        )

    def rand(self, *shape: int) -> Tensor:
        """[B, *shape] in [0, 1)."""
        return torch.rand(
            self.count, *shape, generator=self.generator, device=self.generator.device
        )


def rows(values: Iterable[object], chosen: Tensor) -> Tensor:
    """The chosen ones of some constants, on the device of `chosen`."""
    return torch.tensor(list(values), device=chosen.device)[chosen]


def pixel_grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of every pixel in [-1, 1], each [1, side, side]."""
    line = torch.linspace(-1, 1, side, device=device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def distance(shape: Tensor, radius: Tensor, place: Tensor, turn: Tensor, side: int) -> Tensor:
    """[B, side, side]: from the edge of one shape a drawing, negative inside; `turn` in radians."""
    x, y = pixel_grid(side, shape.device)
    x, y = x - place[:, 0, None, None], y - place[:, 1, None, None]
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    distances = _distances(x, y, radius[:, None, None])
    return distances[torch.arange(len(shape), device=shape.device), shape]


def soft(distances: Tensor) -> Tensor:
    """[B, 1, side, side]: 1 inside, 0 outside, with an edge of about two pixels."""
    return torch.sigmoid(-distances * distances.shape[-1] * 1.2)[:, None]


def _distances(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """[B, len(SHAPES), side, side]: negative inside each shape, in its own frame."""
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


def stripes(dice: Dice, side: int, least_waves: float = 1.5, most_waves: float = 6.0) -> Tensor:
    """[B, 1, side, side] waves of any direction, width and phase, in [-1, 1]."""
    x, y = pixel_grid(side, dice.generator.device)
    angle, phase = (dice.rand(1, 1) * FULL_TURN for _ in range(2))
    waves = least_waves + (most_waves - least_waves) * dice.rand(1, 1)
    return torch.sin(3.1416 * waves * (x * angle.cos() + y * angle.sin()) + phase)[:, None]


def slope(dice: Dice, side: int) -> Tensor:
    """[B, 1, side, side]: light from any side, as a factor around 1."""
    x, y = pixel_grid(side, dice.generator.device)
    light = dice.rand(1, 1) * FULL_TURN
    return (1 + 0.2 * (x * light.cos() + y * light.sin()))[:, None]


def colored(colors: Mapping[str, Color], chosen: Tensor, dice: Dice, side: int) -> Tensor:
    """[B, 3, side, side] in [0, 1]: the chosen colours, lit."""
    return rows(colors.values(), chosen)[:, :, None, None] * slope(dice, side)


def add_bystander(picture: Tensor, dice: Dice, least: float, most: float) -> Tensor:
    """The pictures with a shape of any kind, colour and place, there half the time."""
    side = picture.shape[-1]
    shape, radius = dice.pick(len(SHAPES)), least + (most - least) * dice.rand()
    from_edge = distance(shape, radius, 1.8 * dice.rand(2) - 0.9, FULL_TURN * dice.rand(), side)
    mask = soft(from_edge) * (dice.rand(1, 1, 1) < 0.5)
    color = rows(COLORS.values(), dice.pick(len(COLORS)))[:, :, None, None]
    return mask * color + (1 - mask) * picture
