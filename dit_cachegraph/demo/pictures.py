"""The two pictures of the demo: what was drawn, and what each step decided."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dit_cachegraph.demo.run import DemoResult
from dit_cachegraph.runtime.step_log import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
DIFFERENCE_FACTOR = 10
PICTURE_INCHES = 1.3
GAP_INCHES = 0.08
LABEL_INCHES = 0.3
MARGIN_INCHES = 0.25
HEADER_INCHES = 0.8
PLOT_INCHES = (9.0, 4.5)
REUSE_COLOR, COMPUTE_COLOR = "#1a7f37", "#b35900"


def save_grid(result: DemoResult, path: Path) -> None:
    """Uncached, cached and their difference for each prompt: eight rows at most, then further
    columns of the same three."""
    num_rows = min(8, len(result.prompts))
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
    num_rows = min(8, num_prompts)
    num_groups = math.ceil(num_prompts / num_rows)
    width = num_groups * (_group_inches() + MARGIN_INCHES) + MARGIN_INCHES
    height = HEADER_INCHES + num_rows * (LABEL_INCHES + PICTURE_INCHES) + MARGIN_INCHES
    return width, height


def _group_inches() -> float:
    return 3 * PICTURE_INCHES + 2 * GAP_INCHES


def _figure(width: float, height: float) -> "Figure":
    # Optional; the class itself, since pyplot keeps figures in the process and may want a display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def _draw_prompt(
    figure: "Figure", result: DemoResult, i: int, left_top: tuple[float, float]
) -> None:
    """Label and three pictures; `left_top` in inches from the top left corner."""
    left, top = left_top
    _text(figure, left, top + LABEL_INCHES - 0.08, result.prompts[i], size=8.5)
    psnr = f"{result.psnr_db[i]:.1f} dB"
    right = left + _group_inches()
    _text(figure, right, top + LABEL_INCHES - 0.08, psnr, size=8.5, align="right")
    uncached, cached = result.uncached.pictures[i], result.cached.pictures[i]
    difference = ((cached - uncached).abs() * DIFFERENCE_FACTOR).clamp(0, 1)
    for column, picture in enumerate((uncached, cached, difference)):
        x = left + column * (PICTURE_INCHES + GAP_INCHES)
        _image(figure, x, top + LABEL_INCHES, picture)


def _draw_titles(figure: "Figure", result: DemoResult, num_groups: int) -> None:
    report = result.report
    title = f"{report.num_hits} of {len(result.steps)} steps reused, same seeds"
    _text(figure, MARGIN_INCHES, 0.36, title, size=11, weight="bold")
    names = ("torch.compile", "with the cache", f"difference x {DIFFERENCE_FACTOR}")
    for group in range(num_groups):
        left = MARGIN_INCHES + group * (_group_inches() + MARGIN_INCHES)
        for column, name in enumerate(names):
            x = left + column * (PICTURE_INCHES + GAP_INCHES)
            _text(figure, x, HEADER_INCHES - 0.06, name, size=9.5, weight="bold")


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


def save_diff_by_step(result: DemoResult, path: Path) -> None:
    """What each step saw and decided, over the steps of one batch of pictures."""
    figure = _figure(*PLOT_INCHES)
    axes = figure.add_subplot()
    threshold = result.settings.residual_diff_threshold
    axes.axhline(threshold, color="0.3", linestyle="--", linewidth=1, label="threshold")
    seen = [step for step in result.steps if step.diff is not None and math.isfinite(step.diff)]
    axes.plot(
        [s.step for s in seen], [s.diff or 0.0 for s in seen], color="0.75", linewidth=1, zorder=1
    )
    _mark(axes, [s for s in seen if s.hit], REUSE_COLOR, "o", "reuse")
    _mark(axes, [s for s in seen if not s.hit], COMPUTE_COLOR, "s", "compute")
    _shade(axes, [s.step for s in result.steps if s.diff is None], "compute, nothing compared")
    _label(axes, result)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def _mark(axes: "Axes", steps: Sequence[Step], color: str, marker: str, label: str) -> None:
    if not steps:
        return
    heights = [step.diff or 0.0 for step in steps]
    numbers = [step.step for step in steps]
    axes.scatter(numbers, heights, s=40, c=color, marker=marker, label=label, zorder=2)


def _shade(axes: "Axes", numbers: Sequence[int], label: str) -> None:
    for number in numbers:
        axes.axvspan(
            number - 0.5,
            number + 0.5,
            color=COMPUTE_COLOR,
            alpha=0.12,
            linewidth=0,
            label=label if number == numbers[0] else None,
        )


def _label(axes: "Axes", result: DemoResult) -> None:
    num_first = result.settings.Fn_compute_blocks
    blocks = "the first block" if num_first == 1 else f"the first {num_first} blocks"
    axes.set_xlabel("step")
    axes.set_ylabel("relative L1 difference")
    num_pictures = len(result.prompts)
    worst = f" (worst of the {num_pictures} pictures)" if num_pictures > 1 else ""
    axes.set_title(
        f"What {blocks} changed, against the last computed step{worst}",
        size=10,
        pad=28,
    )
    axes.set_xlim(-0.5, len(result.steps) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(ncols=4, frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0))
