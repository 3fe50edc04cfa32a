"""Quality on schedules that people sample with.

    python -m bench.quality_settings --quick                        a few minutes
    python -m bench.quality_settings --out bench/results/quality    on the prompts reported on
    python -m bench.quality_settings --half choosing                on those to choose presets on

Stop it at any time: the same command goes on where it was. `bench.quality_overview` makes the page.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from bench.common.machine import this_machine
from bench.common.threads import use_one_thread
from bench.quality.contenders import Contender, all_contenders
from bench.quality.draw import Artist, artist_for, sampled_by
from bench.quality.models import NUM_PICTURES
from bench.quality.setting_rows import (
    EQUAL_DB,
    SettingRow,
    append_setting_row,
    read_setting_rows,
)
from bench.quality.settings import USUAL_STEPS, Setting, all_settings
from dit_cachegraph.metrics.pixels import psnr_db

# Where each half of the prompts begins.
HALVES: Mapping[str, int] = MappingProxyType({"choosing": 0, "reporting": NUM_PICTURES // 2})
MOST_PICTURES: Mapping[str, int] = MappingProxyType(
    {"choosing": NUM_PICTURES // 2, "reporting": NUM_PICTURES // 2 + NUM_PICTURES}
)
"""Of the second half 64 more, of the same prompts from other noise."""
USUAL_PICTURES, QUICK_PICTURES = 16, 4
BATCH = 8
QUICK_SCHEDULES = ("shift 3", "UniPC, flow shift 5")
ROWS_FILE = "settings.jsonl"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What to measure."""

    settings: tuple[Setting, ...]
    contenders: tuple[Contender, ...]
    half: str
    num_pictures: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / ROWS_FILE


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality_settings", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a few settings, methods and pictures")
    parser.add_argument("--half", choices=HALVES, default="reporting", help="of the prompts")
    parser.add_argument("--settings", default="", metavar="TEXT", help="with this in the name")
    parser.add_argument("--only", default="", metavar="TEXT", help="methods with this in the name")
    parser.add_argument("--pictures", type=int, metavar="N", help="of each prompt one; then more")
    parser.add_argument("--out", type=Path, default=Path("quality_out"), metavar="FOLDER")
    parsed = parser.parse_args(arguments)
    settings = [s for s in all_settings() if parsed.settings in str(s)]
    contenders = [c for c in all_contenders() if parsed.only in c.name]
    if parsed.quick:
        settings = [s for s in settings if _is_quick(s)]
        contenders = [c for c in contenders if c.is_quick]
    if not settings or not contenders:
        what = parsed.only if settings else parsed.settings
        parser.error(f"nothing that is measured has {what!r} in its name")
    num_pictures = parsed.pictures or (QUICK_PICTURES if parsed.quick else USUAL_PICTURES)
    most = MOST_PICTURES[parsed.half]
    if not 1 <= num_pictures <= most:
        parser.error(f"--pictures {num_pictures}: the {parsed.half} half has 1 to {most}")
    return Arguments(tuple(settings), tuple(contenders), parsed.half, num_pictures, parsed.out)


def _is_quick(setting: Setting) -> bool:
    is_usual = setting.num_steps == USUAL_STEPS and setting.schedule in QUICK_SCHEDULES
    return is_usual and setting.model_name[0] == ("f" if setting.schedule[0] == "s" else "w")


def measure(arguments: Arguments) -> None:
    """Write all rows that aren't there yet."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    known = {row.key for row in read_setting_rows(arguments.path)}
    artists: dict[str, Artist] = {}
    for setting in arguments.settings:
        missing = [c for c in arguments.contenders if _key(setting, c, arguments) not in known]
        if missing:
            artist = _artist(artists, setting, arguments)
            for contender in missing:
                _measure(artist, setting, contender, arguments)


def _key(
    setting: Setting, contender: Contender, arguments: Arguments
) -> tuple[str, str, str, str, str, int]:
    """That of the row which it would give."""
    row = _row(setting, contender, arguments)
    return replace(row, psnr_db=(0.0,) * arguments.num_pictures).key


def _row(setting: Setting, contender: Contender, arguments: Arguments) -> SettingRow:
    """Without figures."""
    version = setting.model.version
    return SettingRow(
        str(setting), arguments.half, version, contender.name, contender.camp, contender.options,
        share=1.0, psnr_db=(), seconds=0.0, machine="",
    )  # fmt: skip


def _artist(artists: dict[str, Artist], setting: Setting, arguments: Arguments) -> Artist:
    """What is compiled serves all settings of a model."""
    model = setting.model
    if setting.model_name not in artists:
        made = artist_for(model, arguments.num_pictures, BATCH, arguments.folder)
        made = replace(made, first_picture=HALVES[arguments.half])
        artists[setting.model_name] = made
    return sampled_by(replace(artists[setting.model_name], model=model), model.solver())


def _measure(artist: Artist, setting: Setting, contender: Contender, arguments: Arguments) -> None:
    references = artist.uncached(setting.num_steps)
    start = time.process_time()
    drawn = contender.draw(artist, setting.num_steps)
    seconds = time.process_time() - start
    nearness = psnr_db(drawn.pictures, references).clamp(max=EQUAL_DB)
    row = replace(
        _row(setting, contender, arguments),
        share=drawn.share,
        psnr_db=tuple(round(value, 3) for value in nearness.tolist()),
        seconds=round(seconds, 3),
        machine=str(this_machine()),
    )
    append_setting_row(arguments.path, row)
    print(
        f"{setting}, {row.contender}: share {row.share:.3f}, {row.mean_db:.1f} dB, "
        f"worst {row.worst_db:.1f}",
        flush=True,
    )


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    use_one_thread()
    with torch.no_grad():
        measure(parsed)
