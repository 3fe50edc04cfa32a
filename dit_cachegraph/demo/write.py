"""The table, and everything that the demo writes."""

from collections.abc import Callable
from pathlib import Path

import torch

from dit_cachegraph.demo.flux_scenes import SIDE_PIXELS
from dit_cachegraph.demo.pictures import save_grid
from dit_cachegraph.demo.run import Contender, DemoResult
from dit_cachegraph.plot import save_plot

Row = tuple[str, str, str]


def write(result: DemoResult, folder: Path) -> list[Path]:
    """Write the pictures and the table into `folder`, which is made if it isn't there."""
    folder.mkdir(parents=True, exist_ok=True)
    grid, plot, text = (folder / n for n in ("grid.png", "steps.png", "table.md"))
    save_grid(result, grid)
    save_plot(result.report, plot)
    text.write_text(table(result), encoding="utf-8")
    return [grid, plot, text]


def table(result: DemoResult) -> str:
    """What the cache changed, as Markdown that also reads well as text."""
    rows = _rows(result)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *_notes(result), ""])


def _rows(result: DemoResult) -> list[Row]:
    num_steps, num_pictures = len(result.steps), len(result.prompts)
    psnr = result.psnr_db
    speedup = result.uncached.median_seconds / result.cached.median_seconds

    def both(show: Callable[[Contender], str]) -> tuple[str, str]:
        return show(result.uncached), show(result.cached)

    return [
        ("", "torch.compile", "with the cache"),
        ("s a run, median", *both(lambda c: f"{c.median_seconds:.2f}")),
        ("s a run, fastest to slowest", *both(_range)),
        ("ms a picture", *both(lambda c: f"{1000 * c.median_seconds / num_pictures:.0f}")),
        ("times as fast", "1", f"{speedup:.2f}"),
        ("compile, s", *both(lambda c: f"{c.compile_seconds:.1f}")),
        ("steps reused", f"0 of {num_steps}", f"{result.report.num_hits} of {num_steps}"),
        ("block work run", "100 %", f"{100 * result.share_of_blocks_run:.0f} %"),
        ("PSNR, mean, dB", "", f"{psnr.mean():.1f}"),
        ("PSNR, worst picture, dB", "", f"{psnr.min():.1f}"),
    ]


def _range(contender: Contender) -> str:
    return f"{min(contender.run_seconds):.2f} to {max(contender.run_seconds):.2f}"


def _line(row: Row, widths: list[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return f"| {' | '.join([first, *others])} |"


def _notes(result: DemoResult) -> list[str]:
    settings, num_pictures = result.settings, len(result.prompts)
    return [
        f"A run draws {num_pictures} {'picture' if num_pictures == 1 else 'pictures'} of "
        f"{SIDE_PIXELS} x {SIDE_PIXELS} in one batch, "
        f"{settings.num_steps} steps, from the same seeds: {settings.num_repetitions} runs of each "
        "in turn, after a first one that compiles. Compile: what that first run took beyond the "
        "median, with nothing on disk from an earlier one. PSNR: of the cached pictures against "
        "the uncached ones, -10 log10 of the mean squared error of all pixels of a picture in "
        "[0, 1], not rounded to 8 bits.",
        "",
        f'Cache: preset="{settings.preset}". torch {torch.__version__}, CPU, one thread, float32, '
        f"{settings.inner_backend}.",
    ]
