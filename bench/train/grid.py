"""Drawings side by side in one PNG, each over its prompt."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor, cat
from torch.nn.functional import pad

ENLARGED = 2  # pixels a side for one pixel
PICTURES_A_ROW = 8
CLIPS_A_ROW = 2
GAP = 8  # pixels
LINE_HEIGHT = 11  # pixels, of Pillow's own font
LETTER_WIDTH = 6.2


def write_grid(path: Path, drawings: Tensor, captions: Sequence[str]) -> None:
    """Pictures [B, 3, H, W], eight a row, or clips [B, F, 3, H, W], two film strips a row."""
    are_clips = drawings.dim() == 5
    cells = _film_strips(drawings) if are_clips else drawings
    columns = CLIPS_A_ROW if are_clips else PICTURES_A_ROW
    width, height = ENLARGED * cells.shape[-1], ENLARGED * cells.shape[-2]
    letters = int(width / LETTER_WIDTH)
    texts = [textwrap.fill(caption, letters) for caption in captions]
    most_lines = max(text.count("\n") for text in texts) + 1
    stride_x, stride_y = width + GAP, height + most_lines * LINE_HEIGHT + GAP
    num_rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * stride_x + GAP, num_rows * stride_y + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        left, top = GAP + i % columns * stride_x, GAP + i // columns * stride_y
        sheet.paste(_image(cell).resize((width, height), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top + height), text, fill="black", spacing=0, font_size=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _film_strips(clips: Tensor) -> Tensor:
    """[B, F, 3, H, W] -> [B, 3, H, F (W + 1)]: frames with a white line after each."""
    spaced = pad(clips, (0, 1), value=1.0)
    return cat(list(spaced.unbind(1)), -1)


def _image(picture: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1]."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
