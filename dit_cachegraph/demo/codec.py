"""Pictures to latents and back, in place of a trained VAE: a cosine transform of 8 x 8 pixels.

Of the 192 numbers of a block the 48 coarsest are kept: 28 of brightness and 10 of each colour
difference, as in a JPEG (34 dB on the drawings). Each is divided by a power of its usual size, so
that coarse and fine emerge at neighbouring noise levels.
"""

import math

import torch
from torch import Tensor

BLOCK = 8  # pixels a side
NUM_KEPT = (28, 10, 10)
LATENT_DIM = sum(NUM_KEPT)
# Brightness and two colour differences: an orthonormal turn of red, green and blue.
TURN = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)
# Measured on the drawings: the usual size of a block's mean, of its slope, and how sizes fall.
MEAN_SIZE, SLOPE_SIZE, FALL = 6.8, 1.2, 1.4
PART_SIZES = (1.0, 0.45, 0.27)
EVENNESS = 0.75  # 1: all numbers get the same size; 0: they keep their own


def encode(pictures: Tensor) -> Tensor:
    """[..., 3, H, W] in [-1, 1] -> [..., 48, H / 8, W / 8], of sizes around 1."""
    blocks = pictures.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    return torch.einsum("kcij,...chiwj->...khw", _filters(pictures.device), blocks)


def decode(latents: Tensor) -> Tensor:
    """[..., 48, h, w] -> [..., 3, 8 h, 8 w]; not clamped."""
    sizes = _sizes(latents.device)[:, None, None, None] ** 2
    blocks = torch.einsum("kcij,...khw->...chiwj", _filters(latents.device) * sizes, latents)
    return blocks.flatten(-2).flatten(-3, -2)


def _coarsest(count: int) -> list[tuple[int, int]]:
    """(row, column) frequencies, by their sum."""
    pairs = ((row, column) for row in range(BLOCK) for column in range(BLOCK))
    return sorted(pairs, key=lambda pair: (sum(pair), max(pair), pair))[:count]


def _filters(device: torch.device) -> Tensor:
    """[48, 3, 8, 8]: what each number measures, divided by its usual size."""
    steps = torch.arange(BLOCK, dtype=torch.float32)
    waves = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / BLOCK) * (2 / BLOCK) ** 0.5
    waves[0] /= 2**0.5
    filters = [
        torch.tensor(color)[:, None, None] * waves[row][:, None] * waves[column]
        for color, count in zip(TURN, NUM_KEPT, strict=True)
        for row, column in _coarsest(count)
    ]
    return torch.stack(filters).to(device) / _sizes(device)[:, None, None, None]


def _sizes(device: torch.device) -> Tensor:
    """[48]: what each number is divided by."""
    sizes = [
        size * (SLOPE_SIZE * (row + column) ** -FALL if row + column else MEAN_SIZE)
        for size, count in zip(PART_SIZES, NUM_KEPT, strict=True)
        for row, column in _coarsest(count)
    ]
    return torch.tensor(sizes, device=device) ** EVENNESS
