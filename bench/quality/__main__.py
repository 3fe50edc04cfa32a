"""Quality against the share of the work: ours, the peers, and fewer steps, on models that draw.

    python -m bench.quality --quick      some methods on 4 pictures, a few minutes
    python -m bench.quality              everything; stop it at any time, and it goes on later

At 50 steps come the methods of a quick run alone. Rows go to MODEL.jsonl in the
folder --out as they are measured, so several models may be measured at once; at the end come a
table and a plot for each model and number of steps. What is counted is block computations: that
says nothing of time, which `bench.quality_time` measures.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common.decibels import decibels
from bench.common.threads import use_one_thread
from bench.quality.draw import artist_for
from bench.quality.judge import Jury, check, references_for, row_of
from bench.quality.methods import QUICK, WHOLE, Method, all_methods
from bench.quality.models import MODELS, NUM_PICTURES, QualityModel
from bench.quality.plot import plot
from bench.quality.rows import Key, Row, append_row, read_rows, table_of

STEPS, QUICK_STEPS = (28, 50), (28,)
# At more, only the methods of a quick run are measured.
WHOLE_STEPS = 28
QUICK_PICTURES = 4
BATCH = 8


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to measure. `batch` pictures are drawn together."""

    models: tuple[str, ...]
    steps: tuple[int, ...]
    num_pictures: int
    batch: int
    methods: tuple[Method, ...]
    folder: Path

    def rows_path(self, model: str) -> Path:
        return self.folder / f"{model}.jsonl"


@dataclass(frozen=True, slots=True)
class Section:
    """One model with one number of steps: what shares references, a table and a plot."""

    model: QualityModel
    num_steps: int
    methods: dict[Key, Method]

    def __str__(self) -> str:
        return f"{self.model.name}, {self.num_steps} steps"


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--steps", nargs="+", type=int, default=None, help="28 and 50")
    parser.add_argument("--pictures", type=int, choices=range(1, NUM_PICTURES + 1), metavar="N")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures drawn together")
    parser.add_argument("--only", default="", metavar="TEXT", help="methods with this in the name")
    parser.add_argument("--quick", action="store_true", help="some methods, 28 steps, 4 pictures")
    parser.add_argument("--out", type=Path, default=Path("quality_out"), metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    chosen = [method for method in all_methods() if parsed.only in method.name]
    if not chosen:
        parser.error(f"no method has {parsed.only!r} in its name")
    if min(parsed.steps or STEPS) < 2 or parsed.batch < 1:
        parser.error("--steps takes counts from 2, and --batch one from 1")
    return Arguments(
        models=tuple(parsed.models),
        steps=tuple(parsed.steps or (QUICK_STEPS if parsed.quick else STEPS)),
        num_pictures=parsed.pictures or (QUICK_PICTURES if parsed.quick else NUM_PICTURES),
        batch=parsed.batch,
        methods=tuple(m for m in chosen if m.tier <= (QUICK if parsed.quick else WHOLE)),
        folder=parsed.out,
    )


def sections_of(arguments: Arguments) -> Iterator[Section]:
    """All that was asked for, measured already or not."""
    for steps in arguments.steps:
        chosen = [m for m in arguments.methods if m.tier <= QUICK or steps <= WHOLE_STEPS]
        for name in arguments.models:
            model = MODELS[name]
            how = (name, model.version, steps, arguments.num_pictures, arguments.batch)
            yield Section(model, steps, {Key(*how, m.name): m for m in chosen})


class Progress:
    """How far a run is, and how long it may take by the mean of the rows so far."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.num_done, self.seconds = num_rows, 0, 0.0

    def say(self, row: Row) -> None:
        self.num_done += 1
        self.seconds += row.seconds
        left = self.seconds / self.num_done * (self.num_rows - self.num_done)
        print(
            f"[{self.num_done}/{self.num_rows}] {row.key.model} {row.key.num_steps} steps, "
            f"{row.key.method}: share {row.share:.3f}, {decibels(row.psnr_db, ' dB')}; "
            f"{left / 60:.0f} min left",
            flush=True,
        )


def measure(arguments: Arguments) -> list[Section]:
    """Write all rows that aren't there yet."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sections = list(sections_of(arguments))
    missing = [_missing(section, arguments) for section in sections]
    progress = Progress(sum(map(len, missing)))
    for section, methods in zip(sections, missing, strict=True):
        if methods:
            _measure_section(section, methods, arguments, progress)
    return sections


def _missing(section: Section, arguments: Arguments) -> dict[Key, Method]:
    known = {row.key for row in read_rows(arguments.rows_path(section.model.name))}
    return {key: method for key, method in section.methods.items() if key not in known}


def _measure_section(
    section: Section, missing: dict[Key, Method], arguments: Arguments, progress: Progress
) -> None:
    model = section.model
    artist = artist_for(model, arguments.num_pictures, arguments.batch, arguments.folder)
    references = references_for(artist, section.num_steps)
    check(artist, references, section.num_steps)
    jury = Jury(model)
    for key, method in missing.items():
        start = time.perf_counter()
        drawn = method.draw(artist, section.num_steps)
        seconds = time.perf_counter() - start
        row = row_of(key, method.group, drawn, references, jury, seconds)
        append_row(arguments.rows_path(model.name), row)
        progress.say(row)


def show(sections: Sequence[Section], arguments: Arguments) -> None:
    """A table and a plot of each section."""
    for section in sections:
        rows = read_rows(arguments.rows_path(section.model.name))
        chosen = [row for row in rows if row.key in section.methods]
        path = arguments.folder / f"{section.model.name}-{section.num_steps}.png"
        plot(chosen, f"{section}, {arguments.num_pictures} pictures", path)
        machines = dict.fromkeys(row.machine for row in chosen)
        print(f"\n{section}, {arguments.num_pictures} pictures; {path}")
        print("\n".join([table_of(chosen), *machines]))


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    use_one_thread()
    with torch.no_grad():
        show(measure(parsed), parsed)


if __name__ == "__main__":
    main(sys.argv[1:])
