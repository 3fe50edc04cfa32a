"""Results as JSON lines that a later run goes on with, as a table, and as a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.figure

from bench._table import table

DPI = 120


@dataclass(frozen=True, slots=True)
class Key:
    """What a row is of; a later run skips the rows that are there."""

    model: str
    num_steps: int
    num_pictures: int
    method: str


@dataclass(frozen=True, slots=True)
class Row:
    """Means over pictures, and the worst. `psnr_db` and `ssim` are against the uncached pictures of
    as many steps, `..._converged` against those of 200; None where two pictures are equal."""

    key: Key
    group: str
    share: float
    psnr_db: float | None
    psnr_db_worst: float | None
    ssim: float
    psnr_db_converged: float | None
    ssim_converged: float
    seconds: float
    machine: str


def read_rows(path: Path) -> list[Row]:
    """Those written so far; a last line that was cut off in the middle is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    loaded = [json.loads(line) for line in lines if line.endswith("\n")]
    return [Row(key=Key(**row.pop("key")), **row) for row in loaded]


def append_row(path: Path, row: Row) -> None:
    """At once, so that a run that is stopped loses nothing."""
    text = path.read_text() if path.exists() else ""
    # The rest of a line that an earlier run didn't finish.
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole + json.dumps(asdict(row), allow_nan=False) + "\n")


def table_of(rows: Sequence[Row]) -> str:
    """By share, most first."""
    header = ["method", "share", "PSNR dB", "worst", "SSIM", "to converged", "SSIM"]
    lines = [header]
    for row in sorted(rows, key=lambda row: -row.share):
        decibels = [row.psnr_db, row.psnr_db_worst]
        shown = [f"{row.share:.3f}", *map(_db, decibels), f"{row.ssim:.4f}"]
        shown += [_db(row.psnr_db_converged), f"{row.ssim_converged:.4f}"]
        lines.append([row.key.method, *shown])
    return table(lines)


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Share against PSNR, to the uncached and to the converged pictures: a dot a method, and a line
    along the best of each group. Ours is drawn under the others, and wide: equal ones both show."""
    # The class itself, since pyplot keeps figures in the process and may want a display.
    figure = matplotlib.figure.Figure(figsize=(14, 7), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    groups = list(dict.fromkeys(row.group for row in rows))
    for ax, against in zip(axes, ("uncached", "converged"), strict=True):
        for i, group in enumerate(sorted(groups, key=lambda name: not name.startswith("ours"))):
            points = _points(rows, group, against)
            is_ours = group.startswith("ours")
            look = {"color": f"C{i % 10}", "lw": 5 if is_ours else 1.2}
            look |= {"alpha": 0.45} if is_ours else {"ls": "-" if i < 10 else "--"}
            ax.plot(*_columns(points), ".", color=look["color"])
            ax.plot(*_columns(front(points)), label=group, **look)
        ax.set(xlabel="share of block computations that ran", ylabel="PSNR, dB")
        ax.set_title(f"to the {against} pictures")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=DPI)


Points = list[tuple[float, float]]


def front(points: Points) -> Points:
    """Those that no other of at most their share is better than, by share."""
    best: Points = []
    for share, decibels in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or decibels > best[-1][1]:
            best.append((share, decibels))
    return best


def _points(rows: Sequence[Row], group: str, against: str) -> Points:
    chosen = [row for row in rows if row.group == group]
    values = [r.psnr_db if against == "uncached" else r.psnr_db_converged for r in chosen]
    return [(r.share, v) for r, v in zip(chosen, values, strict=True) if v is not None]


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
