"""Drawings side by side in one PNG."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

ENLARGED = 2  # pixels a side for one pixel
PICTURES_A_ROW = 8
CLIPS_A_ROW = 2
GAP = 2  # pixels, of white


def write_grid(path: Path, drawings: Tensor) -> None:
    """Pictures [B, 3, H, W], eight a row, or clips [B, F, 3, H, W], two film strips a row."""
    if drawings.dim() == 5:
        cells, columns = _film_strips(drawings), CLIPS_A_ROW
    else:
        cells, columns = drawings, PICTURES_A_ROW
    padded = torch.nn.functional.pad(cells, (GAP, GAP, GAP, GAP), value=1.0)
    lines = [torch.cat(list(line), -1) for line in padded.split(columns)]
    sheet = torch.cat(lines, -2)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    height, width = pixels.shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.numpy())
    image.resize((ENLARGED * width, ENLARGED * height), Image.Resampling.NEAREST).save(path)


def _film_strips(clips: Tensor) -> Tensor:
    """[B, F, 3, H, W] -> [B, 3, H, F (W + GAP)]."""
    spaced = torch.nn.functional.pad(clips, (0, GAP), value=1.0)
    return spaced.permute(0, 2, 3, 1, 4).flatten(-2)
