"""What the presets do where a cache has little to gain and may do harm.

    python -m bench.quality_harm --out bench/results/quality    # goes on where it was stopped

`bench.quality_overview` shows the rows.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.common.machine import this_machine
from bench.common.threads import use_one_thread
from bench.quality.contenders import FEWER, OURS, name_of_preset
from bench.quality.draw import Artist, Drawn, artist_for, by_ours, by_solver
from bench.quality.setting_rows import (
    EQUAL_DB,
    SettingRow,
    append_setting_row,
    read_setting_rows,
)
from bench.quality.unusual import Case, all_cases
from dit_cachegraph.calibration.rival import num_steps_for
from dit_cachegraph.metrics.pixels import psnr_db
from dit_cachegraph.policy.presets import PRESETS

ROWS_FILE = "harm.jsonl"
NUM_PICTURES = 8
FEWEST_STEPS = 2
HALF = "choosing"  # Of the prompts: the first ones. Nothing is chosen by these rows.


def measure(folder: Path, cases: Sequence[Case]) -> None:
    """Write all rows that aren't there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ROWS_FILE
    known = {(row.setting, row.version, row.options) for row in read_setting_rows(path)}
    for case in cases:
        named = [(name, repr(sorted(options.items()))) for name, options in PRESETS.items()]
        missing = [
            name for name, options in named if (case.name, case.model.version, options) not in known
        ]
        if missing:
            artist = artist_for(case.model, NUM_PICTURES, case.batch, folder)
            for name in missing:
                for row in _rows_of(artist, case, name):
                    append_setting_row(path, row)
                    print(f"{case.name}, {row.contender}: {row.share:.3f}, {row.mean_db:.1f} dB")


def _rows_of(artist: Artist, case: Case, preset: str) -> Iterator[SettingRow]:
    """The preset, and fewer steps of no more work beside it; those first, so that a run that is
    stopped between the two measures both again."""
    start, options = time.process_time(), PRESETS[preset]
    drawn = by_ours(artist, options, case.num_steps)
    row = _row(artist, case, name_of_preset(preset), drawn)
    num_steps = max(num_steps_for(drawn.share, case.num_steps), FEWEST_STEPS)
    fewer = by_solver(artist, case.model.solver(), num_steps, case.num_steps)
    seconds = round(time.process_time() - start, 3)
    yield _row(artist, case, beside(preset), fewer)
    yield replace(row, camp=OURS, options=repr(sorted(options.items())), seconds=seconds)


def beside(preset: str) -> str:
    """What fewer steps of no more work than a preset's are called."""
    return f'{FEWER} beside "{preset}"'


def _row(artist: Artist, case: Case, contender: str, drawn: Drawn) -> SettingRow:
    nearness = psnr_db(drawn.pictures, artist.uncached(case.num_steps)).clamp(max=EQUAL_DB)
    return SettingRow(
        case.name, HALF, case.model.version, contender, FEWER, "", drawn.share,
        tuple(round(value, 3) for value in nearness.tolist()), 0.0, str(this_machine()),
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality_harm", description=__doc__)
    parser.add_argument("--cases", default="", metavar="TEXT", help="with this in the name")
    parser.add_argument("--out", type=Path, default=Path("quality_out"), metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    cases = [case for case in all_cases() if parsed.cases in case.name]
    if not cases:
        parser.error(f"no case has {parsed.cases!r} in its name")
    use_one_thread()
    with torch.no_grad():
        measure(parsed.out, cases)
