"""A picture of a calibration: all that was tried, the frontier, and how the best did elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dit_cachegraph.calibration.points import Point, Search, unbeaten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0969da", "#b35900", "#8250df", "#57606a")
BEST_COLOR = "#1a7f37"
SIZE_INCHES, DPI = (7.0, 4.5), 100
LABELS = MappingProxyType({"psnr_db": "PSNR against the uncached pictures, dB", "ssim": "SSIM"})


def plot_frontier(found: Search, path: str | Path) -> None:
    """Work to the right, quality upwards; pale points were tried on fewer pictures, and the dotted
    line has them too."""
    # Optional; the class itself, since pyplot keeps figures in the process and may want a display.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    axes = figure.subplots()
    most = max(point.num_inputs for point in found.tried)
    rules = sorted({str(point.settings["rule"]) for point in found.tried})
    for i, rule in enumerate(rules):
        some = [point for point in found.tried if point.settings["rule"] == rule]
        color = COLORS[i % len(COLORS)]
        _dots(axes, found, [p for p in some if p.num_inputs < most], color, alpha=0.3)
        _dots(axes, found, [p for p in some if p.num_inputs == most], color)
        axes.scatter([], [], s=30, c=color, label=rule)
    for line, style in ((unbeaten(found.tried, found.quality), ":"), (found.frontier, "-")):
        shares = [point.share for point in line]
        axes.plot(shares, _heights(found, line), style, color="0.6", linewidth=1, zorder=1)
    for point, marker, label in ((found.best, "*", "chosen"), (found.holdout, "D", "on others")):
        axes.scatter([point.share], _heights(found, [point]), s=110, marker=marker, c=BEST_COLOR,
                     label=label, zorder=3)  # fmt: skip
    axes.set_xlabel("share of the block work")
    axes.set_ylabel(LABELS[found.quality])
    axes.set_title(found.promise, size=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)


def _dots(
    axes: "Axes", found: Search, points: Sequence[Point], color: str, alpha: float = 1.0
) -> None:
    shares = [point.share for point in points]
    axes.scatter(shares, _heights(found, points), s=30, c=color, alpha=alpha, zorder=2)


def _heights(found: Search, points: Sequence[Point]) -> list[float]:
    return [point.quality(found.quality) for point in points]
