"""The table, and everything that the demo writes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dit_cachegraph.demo.flux_scenes import SIDE_PIXELS
from dit_cachegraph.demo.pictures import save_grid
from dit_cachegraph.demo.run import Contender, DemoResult
from dit_cachegraph.plot import save_plot

Row = tuple[str, str, str, str]


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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *_notes(result), ""])


def _rows(result: DemoResult) -> list[Row]:
    num_calls, num_pictures = len(result.steps), len(result.prompts)
    plain = result.uncached.median_seconds
    cached_work, fewer_work = (
        f"{100 * share:.0f} %"
        for share in (
            result.share_of_blocks_run,
            result.fewer.num_steps / result.settings.num_steps,
        )
    )

    def each(show: Callable[[Contender], str]) -> tuple[str, str, str]:
        return show(result.uncached), show(result.cached), show(result.fewer)

    def decibels(show: Callable[[Tensor], Tensor]) -> tuple[str, str, str]:
        cached, in_fewer = (result.psnr_db(c) for c in (result.cached, result.fewer))
        return "", f"{show(cached):.1f}", f"{show(in_fewer):.1f}"

    return [
        ("", "torch.compile", "with the cache", "fewer steps"),
        ("s a run, median", *each(lambda c: f"{c.median_seconds:.2f}")),
        ("s a run, fastest to slowest", *each(_range)),
        ("ms a picture", *each(lambda c: f"{1000 * c.median_seconds / num_pictures:.0f}")),
        ("times as fast", *each(lambda c: f"{plain / c.median_seconds:.2f}")),
        ("compile, s", *each(lambda c: f"{c.compile_seconds:.1f}")[:2], ""),
        ("steps", *each(lambda c: str(c.num_steps))),
        ("calls of the model reused", "", f"{result.report.num_hits} of {num_calls}", ""),
        ("block work run", "100 %", cached_work, fewer_work),
        ("PSNR, mean, dB", *decibels(torch.mean)),
        ("PSNR, worst picture, dB", *decibels(torch.min)),
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
        f"{SIDE_PIXELS} x {SIDE_PIXELS} in one batch, {settings.num_steps} steps, guidance "
        f"{settings.guidance:g}, from the same seeds: {settings.num_repetitions} runs of each "
        "in turn, after a first one that compiles. Fewer steps: torch.compile alone, with as many "
        "steps as come nearest to what the cache computed. Compile: what that first run took "
        "beyond the median, with nothing on disk from an earlier one. PSNR: against the pictures "
        "of torch.compile, -10 log10 of the mean squared error of all pixels of a picture in "
        "[0, 1], not rounded to 8 bits.",
        "",
        f'Cache: preset="{settings.preset}". torch {torch.__version__}, CPU, one thread, float32, '
        f"{settings.inner_backend}.",
    ]
