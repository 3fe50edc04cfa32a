"""Quality against measured time, as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import matplotlib.figure

from bench.common.spread import Spread
from bench.quality.rows import Row

DPI = 100
# By how the name of a method begins; all else is fewer steps.
COLORS: Mapping[str, str] = MappingProxyType(
    {"ours preset ": "tab:red", "ours ": "tab:orange", "cache-dit ": "tab:blue"}
    | {"diffusers ": "tab:green", "": "tab:gray"}
)


def plot_time(rows: Sequence[Row], timed: Mapping[str, Spread], title: str, path: Path) -> None:
    """A dot a method with the quartiles of its time; the uncached one is the 1 of the time axis."""
    # The class itself, since pyplot keeps figures in the process and may want a display.
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots()
    by_name = {row.key.method: row for row in rows}
    for name, ratio in timed.items():
        psnr_db = by_name[name].psnr_db
        if psnr_db is None:
            continue
        color = next(color for start, color in COLORS.items() if name.startswith(start))
        spread = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axes.errorbar(ratio.median, psnr_db, xerr=spread, fmt="o", color=color)
        # Ours with the same options lies beside it, at the same height.
        offset = (6, -12) if name.startswith("cache-dit ") else (6, 6)
        at = (ratio.median, psnr_db)
        axes.annotate(name, at, offset, textcoords="offset points", fontsize=8)
    axes.axvline(1, color="black", lw=1, ls="--")
    axes.set(xlabel="CPU time, as a ratio to the uncached pictures'", title=title)
    axes.set_ylabel("PSNR to the uncached pictures, dB")
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
