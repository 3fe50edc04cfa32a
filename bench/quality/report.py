"""What the rows of `bench.quality` say, as a page of tables and plots.

    python -m bench.quality_report      docs/quality-even.md, docs/quality-MODEL-STEPS.png
                                        and docs/quality-time-MODEL.png

Reads the rows that are kept in bench/results/quality/, or those in the folder --rows.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common.machine import ROOT
from bench.common.spread import Spread
from bench.quality.__main__ import BATCH, STEPS
from bench.quality.models import MODELS, NUM_PICTURES
from bench.quality.plot import plot
from bench.quality.rows import ROWS, Key, Row, read_rows
from bench.quality.tables import (
    best_table,
    parity_sentence,
    time_table,
    to_converged,
    to_uncached,
    whole_table,
)
from bench.quality.time_plot import plot_time

DOCS = ROOT / "docs"
PAGE = "quality-even.md"
INTRODUCTION = f"""# Quality against work on even levels: every figure

    python -m bench.quality --out bench/results/quality    # measures; goes on where it was stopped
    python -m bench.quality_report                         # writes this page and its plots

On schedules that people sample with: [quality.md](quality.md).

What the methods are, and what the figures mean, stands in [evaluation.md](evaluation.md). \
{NUM_PICTURES} pictures, drawn in batches of {BATCH}; *share* is the share of block computations \
that ran; PSNR and SSIM are means against the uncached pictures of as many steps, *worst* is the \
worst picture."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What `bench.quality_time` kept: ratios to the uncached time, by method."""

    ratios: Mapping[str, Spread]
    num_pictures: int
    num_rounds: int
    machine: str


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one model with one number of steps."""

    model: str
    num_steps: int
    rows: Sequence[Row]
    timed: Timing | None

    @property
    def title(self) -> str:
        return f"{self.model}, guidance {MODELS[self.model].guidance:g}, {self.num_steps} steps"

    @property
    def picture(self) -> str:
        return f"quality-{self.model}-{self.num_steps}.png"

    @property
    def picture_of_time(self) -> str:
        return f"quality-time-{self.model}.png"


def sections_in(folder: Path) -> Iterator[Section]:
    """All that has rows of whole size, of the weights that are kept now."""
    for steps in STEPS:
        for name in MODELS:
            how = (name, MODELS[name].version, steps, NUM_PICTURES, BATCH)
            known = read_rows(folder / f"{name}.jsonl")
            if rows := [row for row in known if row.key == Key(*how, row.key.method)]:
                yield Section(name, steps, rows, timing_in(folder, name, steps))


def timing_in(folder: Path, model: str, num_steps: int) -> Timing | None:
    """None if there is none of the weights that are kept now."""
    path = folder / f"time-{model}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if (kept.get("version"), kept.get("num_steps")) != (MODELS[model].version, num_steps):
        return None
    ratios = {method["name"]: Spread(**method["ratio"]) for method in kept["methods"]}
    return Timing(ratios, kept["num_pictures"], kept["num_rounds"], kept["machine"])


def markdown_of(section: Section) -> str:
    """Summary, plot and table."""
    machines = "; ".join(dict.fromkeys(row.machine for row in section.rows))
    parts = [
        f"## {section.title}",
        "Best PSNR to the uncached pictures, in dB, by the most work that is allowed (method, its "
        "share):",
        best_table(section.rows, to_uncached),
        "Best PSNR to the pictures of 200 steps:",
        best_table(section.rows, to_converged),
        parity_sentence(section.rows),
        f"![{section.title}]({section.picture})",
        whole_table(section.rows),
        f"Machine: {machines}.",
        *_about_time(section),
    ]
    return "\n\n".join(parts)


def _about_time(section: Section) -> list[str]:
    timed = section.timed
    if timed is None:
        return []
    command = f"python -m bench.quality_time --model {section.model} --rounds {timed.num_rounds}"
    command += f" --json bench/results/quality/time-{section.model}.json"
    return [
        f"In time: a batch of {timed.num_pictures}, everything compiled by Inductor, CPU time of "
        "one thread as a ratio to the uncached batch of the same round; compilation is not in it.",
        f"    {command}",
        f"![{section.title}, in time]({section.picture_of_time})",
        time_table(section.rows, timed.ratios),
        f"Machine: {timed.machine}.",
    ]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality_report", description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FOLDER")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    sections = list(sections_in(parsed.rows))
    if not sections:
        parser.error(f"{parsed.rows} has no rows of {NUM_PICTURES} pictures by these weights")
    for section in sections:
        title = f"{section.title}, {NUM_PICTURES} pictures"
        plot(section.rows, title, parsed.docs / section.picture)
        if section.timed is not None:
            path = parsed.docs / section.picture_of_time
            plot_time(section.rows, section.timed.ratios, section.title, path)
    text = "\n\n".join([INTRODUCTION, *map(markdown_of, sections)])
    (parsed.docs / PAGE).write_text(text + "\n", encoding="utf-8")
    print(parsed.docs / PAGE)
