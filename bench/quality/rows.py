"""Results as JSON lines that a later run goes on with, and as a table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.common.decibels import decibels
from bench.common.machine import ROOT
from bench.common.table import table

ROWS = ROOT / "bench" / "results" / "quality"  # those that are kept


@dataclass(frozen=True, slots=True)
class Key:
    """What a row is of; a later run skips the rows that are there. `version` is that of the model:
    what other weights drew doesn't count."""

    model: str
    version: str
    num_steps: int
    num_pictures: int
    batch: int
    method: str


@dataclass(frozen=True, slots=True)
class Row:
    """Means over pictures, and the worst. `psnr_db` and `ssim` are against the uncached pictures of
    as many steps, `..._converged` against those of 200; PSNR is of the pictures that differ, and
    None where none does.
    `read_back` is the share of words that the reader reads back, by slot; `frechet` the distance
    of its features to those of drawings."""

    key: Key
    group: str
    share: float
    psnr_db: float | None
    psnr_db_worst: float | None
    ssim: float
    psnr_db_converged: float | None
    ssim_converged: float
    read_back: Mapping[str, float]
    frechet: float | None
    seconds: float
    machine: str

    @property
    def agreement(self) -> float:
        """The share of all words that are read back."""
        return statistics.fmean(self.read_back.values())


def read_rows(path: Path) -> list[Row]:
    """Those written so far."""
    return [Row(key=Key(**row.pop("key")), **row) for row in read_lines(path)]


def append_row(path: Path, row: Row) -> None:
    """At once, so that a run that is stopped loses nothing."""
    append_line(path, asdict(row))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off in the middle is left
    out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_line(path: Path, content: Mapping[str, object]) -> None:
    """Behind the lines that are whole."""
    text = path.read_text() if path.exists() else ""
    # The rest of a line that an earlier run didn't finish.
    whole = text[: text.rfind("\n") + 1]
    path.write_text(whole + json.dumps(content, allow_nan=False) + "\n")


def table_of(rows: Sequence[Row]) -> str:
    """By share, most first."""
    header = ["method", "share", "PSNR dB", "worst", "SSIM", "to converged", "SSIM"]
    lines = [[*header, "words", "Fréchet"]]
    for row in sorted(rows, key=lambda row: -row.share):
        to_uncached = [row.psnr_db, row.psnr_db_worst]
        shown = [f"{row.share:.3f}", *map(decibels, to_uncached), f"{row.ssim:.4f}"]
        shown += [decibels(row.psnr_db_converged), f"{row.ssim_converged:.4f}"]
        shown += [f"{row.agreement:.1%}", "" if row.frechet is None else f"{row.frechet:.1f}"]
        lines.append([row.key.method, *shown])
    return table(lines)
