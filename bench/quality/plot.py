"""Quality against the share of the work, as a plot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.colors
import matplotlib.figure

from bench.quality.rows import Row

DPI = 100
# What is on the y axis, and whether more of it is better.
PANELS: Sequence[tuple[str, Callable[[Row], float | None], bool]] = (
    ("PSNR to the uncached pictures, dB", lambda row: row.psnr_db, True),
    ("PSNR to the converged pictures (200 steps), dB", lambda row: row.psnr_db_converged, True),
    ("SSIM with the uncached pictures", lambda row: row.ssim, True),
    ("SSIM with the converged pictures", lambda row: row.ssim_converged, True),
    ("words of the prompt that are read back, %", lambda row: 100 * row.agreement, True),
    ("Fréchet distance to drawings (less is better)", lambda row: row.frechet, False),
)
OURS, CACHE_DIT, DIFFUSERS = "ours, ", "cache-dit, ", "diffusers, "

Points = list[tuple[float, float]]


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """A dot a method, and a line along the best of each group. Ours is drawn under the others, and
    wide; cache-dit with the same options in the same colour: equal ones both show."""
    # The class itself, since pyplot keeps figures in the process and may want a display.
    figure = matplotlib.figure.Figure(figsize=(15, 19), layout="constrained")
    figure.suptitle(title)
    all_axes = figure.subplots(3, 2).flat
    groups = sorted(
        dict.fromkeys(row.group for row in rows if row.group != "uncached"),
        key=lambda name: not name.startswith(OURS),
    )
    for axes, (label, value, more_is_better) in zip(all_axes, PANELS, strict=True):
        for group in groups:
            found = [(row.share, value(row)) for row in rows if row.group == group]
            points = [(share, y) for share, y in found if y is not None]
            _draw_group(axes, group, points, color_of(group, groups), more_is_better)
        axes.set(xlabel="share of block computations that ran", title=label)
        axes.grid(alpha=0.3)
        for row in rows:
            if row.group == "uncached" and (y := value(row)) is not None:
                axes.axhline(y, color="black", lw=1, ls="--", label="uncached")
    figure.legend(*all_axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=DPI)


def color_of(group: str, groups: Sequence[str]) -> str:
    """One a kind: what ours and cache-dit both have is of one colour."""
    kinds = list(dict.fromkeys(_kind(name) for name in groups))
    turn, i = divmod(kinds.index(_kind(group)), 10)
    # Ten strong colours, then the ten pale ones beside them.
    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"](2 * i + turn % 2))


def _kind(group: str) -> str:
    return group.removeprefix(OURS).removeprefix(CACHE_DIT)


def _draw_group(
    axes: matplotlib.axes.Axes, group: str, points: Points, color: str, more_is_better: bool
) -> None:
    look: dict[str, Any] = {"lw": 1.3, "ls": "-", "marker": "s", "ms": 5}
    if group.startswith(OURS):
        look = {"lw": 5, "alpha": 0.4, "marker": "o", "ms": 11}
    elif group.startswith(CACHE_DIT):
        look |= {"ls": "--", "marker": "x", "ms": 7}
    elif group.startswith(DIFFUSERS):
        look |= {"ls": ":", "marker": "^", "ms": 7}
    sign = 1 if more_is_better else -1
    best = [(x, sign * y) for x, y in front([(x, sign * y) for x, y in points])]
    axes.plot(*_columns(points), ".", color=color)
    axes.plot(*_columns(best), label=group, color=color, **look)


def front(points: Points) -> Points:
    """Those that no other of at most their share is better than, by share."""
    best: Points = []
    for share, decibels in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or decibels > best[-1][1]:
            best.append((share, decibels))
    return best


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
