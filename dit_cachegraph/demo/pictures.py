"""The demo's picture of what was drawn."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dit_cachegraph.demo.run import DemoResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 128  # so that a picture's pixel is two by two
NUM_COLUMNS = 5
FEW_ROWS, MANY_ROWS = 8, 11
DIFFERENCE_FACTOR = 10
PICTURE_INCHES = 1.0
GAP_INCHES = 0.08
LABEL_INCHES = 0.25
MARGIN_INCHES = 0.25
HEADER_INCHES = 0.8


def save_grid(result: DemoResult, path: Path) -> None:
    """For each prompt uncached, cached, in fewer steps, and the differences of those two: rows one
    under the other, then further columns of the same five."""
    num_rows = _num_rows(len(result.prompts))
    width, height = grid_inches(len(result.prompts))
    figure = _figure(width, height)
    for i in range(len(result.prompts)):
        group, row = divmod(i, num_rows)
        left = MARGIN_INCHES + group * (_group_inches() + MARGIN_INCHES)
        top = HEADER_INCHES + row * (LABEL_INCHES + PICTURE_INCHES)
        _draw_prompt(figure, result, i, (left, top))
    _draw_titles(figure, result, math.ceil(len(result.prompts) / num_rows))
    figure.savefig(path, dpi=DPI)


def grid_inches(num_prompts: int) -> tuple[float, float]:
    """Width and height of the grid of so many prompts."""
    num_rows = _num_rows(num_prompts)
    num_groups = math.ceil(num_prompts / num_rows)
    width = num_groups * (_group_inches() + MARGIN_INCHES) + MARGIN_INCHES
    height = HEADER_INCHES + num_rows * (LABEL_INCHES + PICTURE_INCHES) + MARGIN_INCHES
    return width, height


def _num_rows(num_prompts: int) -> int:
    """Two groups of columns take most prompts; with more rows, three take the rest."""
    return min(num_prompts, FEW_ROWS if num_prompts <= 2 * FEW_ROWS else MANY_ROWS)


def _group_inches() -> float:
    return NUM_COLUMNS * PICTURE_INCHES + (NUM_COLUMNS - 1) * GAP_INCHES


def _figure(width: float, height: float) -> "Figure":
    # Optional; the class itself, since pyplot keeps figures in the process and may want a display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def _draw_prompt(
    figure: "Figure", result: DemoResult, i: int, left_top: tuple[float, float]
) -> None:
    """Label and five pictures; `left_top` in inches from the top left corner."""
    left, top = left_top
    lefts = [left + column * (PICTURE_INCHES + GAP_INCHES) for column in range(NUM_COLUMNS)]
    _text(figure, left, top + LABEL_INCHES - 0.06, result.prompts[i], size=7.5)
    others = (result.cached, result.fewer)
    uncached, *compared = (c.pictures[i] for c in (result.uncached, *others))
    differences = [((p - uncached).abs() * DIFFERENCE_FACTOR).clamp(0, 1) for p in compared]
    for x, picture in zip(lefts, (uncached, *compared, *differences), strict=True):
        _image(figure, x, top + LABEL_INCHES, picture)
    for x, contender in zip(lefts[-len(others) :], others, strict=True):
        psnr = f"{result.psnr_db(contender)[i]:.1f} dB"
        _text(figure, x, top + LABEL_INCHES - 0.06, psnr, size=7.5)


def _draw_titles(figure: "Figure", result: DemoResult, num_groups: int) -> None:
    report = result.report
    title = (
        f"{report.num_hits} of {len(result.steps)} calls of the model reused, same seeds; in the "
        f"last two columns the difference to the first, times {DIFFERENCE_FACTOR}"
    )
    _text(figure, MARGIN_INCHES, 0.36, title, size=10, weight="bold")
    fewer = f"{result.fewer.num_steps} steps"
    names = ("torch.compile", "with the cache", fewer, "the cache's", f"of {fewer}")
    for group in range(num_groups):
        left = MARGIN_INCHES + group * (_group_inches() + MARGIN_INCHES)
        for column, name in enumerate(names):
            x = left + column * (PICTURE_INCHES + GAP_INCHES)
            _text(figure, x, HEADER_INCHES - 0.08, name, size=8.5, weight="bold")


def _text(
    figure: "Figure",
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    weight: str = "normal",
    align: str = "left",
) -> None:
    """Text whose baseline is at `y`; inches from the top left corner."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, size=size, weight=weight, ha=align, va="baseline")


def _image(figure: "Figure", x: float, y: float, picture: Tensor) -> None:
    """A picture [3, H, W] in [0, 1] with its corner at x, y; inches from the top left corner."""
    width, height = figure.get_size_inches()
    bottom = 1 - (y + PICTURE_INCHES) / height
    box = (x / width, bottom, PICTURE_INCHES / width, PICTURE_INCHES / height)
    axes = figure.add_axes(box)
    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()
