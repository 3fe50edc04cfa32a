"""What the rows of `bench.quality_settings` say, on one page.

    python -m bench.quality_overview    docs/quality.md

Reads the rows that are kept in bench/results/quality/, or those in the folder --rows.
"""

import argparse
import itertools
import operator
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.common.machine import ROOT
from bench.quality import overview_texts as texts
from bench.quality.contenders import (
    CACHE_DIT,
    DIFFUSERS_CAMP,
    FEWER,
    NEIGHBOURS,
    OURS,
    all_contenders,
    name_of_preset,
)
from bench.quality.harm import ROWS_FILE as HARM_FILE
from bench.quality.harm import beside
from bench.quality.measure_settings import MOST_PICTURES, ROWS_FILE
from bench.quality.models import NUM_PICTURES
from bench.quality.rows import ROWS
from bench.quality.setting_rows import EQUAL_DB, SettingRow, read_setting_rows
from bench.quality.settings import Setting, all_settings
from bench.quality.tables import markdown
from dit_cachegraph.policy.presets import CHEAPEST_PRESET, DEFAULT_PRESET, PRESETS

PAGE = ROOT / "docs" / "quality.md"
SHARES = (0.3, 0.45, 0.6, 0.75)
ALL_SHARES = tuple(hundredths / 100 for hundredths in range(30, 81))
CLEAR_LEAD_DB = 3.0
SLACK = 0.015  # Less than half a step of 28: shares are of whole steps.
BETTER_PRESETS, LEAST_DB = ("quality", "balanced"), 26
NOTHING = "–"
BEFORE = f"{OURS} E0.1 over steps"
# Presets of long gaps and of short ones, and the same with other forecasts.
FORECASTS = {
    '"draft"': name_of_preset("draft"),
    "every third": f"{OURS} every 3, damped",
    "a whole line": f"{OURS} every 3",
    "half a line": f"{OURS} every 3, half a line",
    '"fast"': name_of_preset("fast"),
    "damped": f"{OURS} E0.12 over noise, damped",
}
OTHERS = frozenset({CACHE_DIT, DIFFUSERS_CAMP, FEWER})
CAMPS = OTHERS | {OURS}


class Measured:
    """The rows of one setting, of the contenders and weights that there are now, over so many
    pictures. `closer` are those over more of them, where some methods were measured again, and may
    have closer ones in turn."""

    def __init__(
        self, setting: Setting, rows: Sequence[SettingRow], closer: "Measured | None" = None
    ) -> None:
        self.setting, self.closer = setting, closer
        self.rows = [row for row in rows if row.setting == str(setting)]

    def closest(self, preset: str) -> "Measured":
        """The rows over the most pictures of which this preset has one."""
        closer = self.closer
        return self if closer is None or closer.preset(preset) is None else closer.closest(preset)

    @property
    def is_comparable(self) -> bool:
        """True where all presets are measured, and something of each of the others."""
        camps = {row.camp for row in self.rows}
        return None not in map(self.preset, PRESETS) and camps >= CAMPS

    def best(self, share: float, camps: frozenset[str]) -> SettingRow | None:
        """The nearest of these to the uncached pictures that runs at most this share."""
        return max(self._within(share, camps), key=lambda row: row.mean_db, default=None)

    def best_two(self, share: float) -> tuple[SettingRow | None, SettingRow | None]:
        """The best of ours, and of all others."""
        return self.best(share, frozenset({OURS})), self.best(share, OTHERS)

    def preset(self, name: str) -> SettingRow | None:
        return self.named(name_of_preset(name))

    def named(self, contender: str) -> SettingRow | None:
        return next((row for row in self.rows if row.contender == contender), None)

    def fewer_at(self, share: float) -> SettingRow | None:
        """The most steps within a share."""
        found = self._within(share, frozenset({FEWER}))
        return max(found, key=lambda row: row.share, default=None)

    def _within(self, share: float, camps: frozenset[str]) -> list[SettingRow]:
        return [row for row in self.rows if row.camp in camps and row.share <= share + SLACK]


def measured_in(path: Path) -> list[Measured]:
    """Settings that have rows of all camps, of the half that is reported on."""
    known = {(contender.name, contender.options) for contender in all_contenders()}
    versions: dict[str, str] = {}
    rows = [row for row in read_setting_rows(path) if row.half == "reporting"]
    rows = [row for row in rows if (row.contender, row.options) in known]
    usual = statistics.mode(len(row.psnr_db) for row in rows) if rows else 0
    found = []
    for setting in all_settings():
        version = versions.setdefault(setting.model.name, setting.model.version)
        of_weights = [row for row in rows if row.version == version]
        found.append(_by_count(setting, of_weights, usual))
    return [measured for measured in found if measured.is_comparable]


def _by_count(setting: Setting, rows: Sequence[SettingRow], num_pictures: int) -> Measured:
    """The rows over so many pictures, with those over more behind them."""
    counts = {len(row.psnr_db) for row in rows if row.setting == str(setting)}
    more = min((count for count in counts if count > num_pictures), default=None)
    closer = None if more is None else _by_count(setting, rows, more)
    return Measured(setting, [r for r in rows if len(r.psnr_db) == num_pictures], closer)


def overview_table(settings: Sequence[Measured]) -> str:
    """Ours, the best other, and the difference, at shares of the work."""
    header = ["", *(f"{share:g} of the work" for share in SHARES)]
    lines = [
        [str(measured.setting), *(_cell(measured, share) for share in SHARES)]
        for measured in settings
    ]
    return markdown(header, lines)


def _cell(measured: Measured, share: float) -> str:
    ours, other = measured.best_two(share)
    if ours is None or other is None:
        return " / ".join(NOTHING if row is None else f"{row.mean_db:.1f}" for row in (ours, other))
    lead = ours.mean_db - other.mean_db
    shown = f"{ours.mean_db:.1f} / {other.mean_db:.1f}"
    return f"{shown} (**{lead:+.1f}**)" if lead >= 0 else f"{shown} ({lead:+.1f})"


def names_table(settings: Sequence[Measured]) -> str:
    """Who the two of each cell are, with their shares."""
    header = ["", *(f"{share:g} of the work" for share in SHARES)]
    lines = []
    for measured in settings:
        cells = []
        for share in SHARES:
            found = measured.best_two(share)
            cells.append("; ".join(NOTHING if row is None else _named(row) for row in found))
        lines.append([str(measured.setting), *cells])
    return markdown(header, lines)


def _named(row: SettingRow) -> str:
    return f"{row.contender} ({row.share:.2f})"


def presets_table(settings: Sequence[Measured]) -> str:
    """Share, mean, tenth percentile and worst of each preset."""
    lines = []
    for measured in settings:
        found = [measured.preset(name) for name in PRESETS]
        cells = [NOTHING if row is None else _spread(row) for row in found]
        lines.append([str(measured.setting), *cells])
    return markdown(["", *(f'"{name}"' for name in PRESETS)], lines)


def _spread(row: SettingRow) -> str:
    figures = (row.mean_db, row.tenth_percentile_db, row.worst_db)
    return f"{row.share:.2f}: {' / '.join(f'{value:.1f}' for value in figures)}"


def lead_table(settings: Sequence[Measured], preset: str) -> str:
    """A preset beside the best other and the most steps that run no more than it does."""
    lines = []
    for measured in settings:
        closest = measured.closest(preset)
        ours = closest.preset(preset)
        if ours is None:
            continue
        others = (closest.best(ours.share, OTHERS), closest.fewer_at(ours.share))
        cells = [NOTHING if row is None else _beside(ours, row) for row in others]
        figures = f"{ours.mean_db:.1f} dB at {ours.share:.2f}"
        figures += f", {len(ours.psnr_db)} pictures" if closest is not measured else ""
        lines.append([str(measured.setting), figures, *cells])
    header = ["", f'"{preset}"', "best other of no more work", "fewer steps of no more work"]
    return markdown(header, lines)


def _beside(ours: SettingRow, other: SettingRow) -> str:
    return f"{other.mean_db:.1f} ({ours.mean_db - other.mean_db:+.1f}), {_named(other)}"


def lost_pictures(settings: Sequence[Measured]) -> str:
    """Where the two better presets have a picture that is another one, and whether it is another
    one in one step more or less of the uncached model as well."""
    found = [_lost(measured, name) for measured in settings for name in BETTER_PRESETS]
    lines = [f"- {line}" for line in found if line is not None]
    which = " or ".join(f'"{name}"' for name in BETTER_PRESETS)
    begin = f"Settings with a picture under {LEAST_DB:g} dB at {which}:"
    return "\n\n".join([begin, "\n".join(lines)]) if lines else f"{begin} none."


def _lost(measured: Measured, preset: str) -> str | None:
    row = measured.preset(preset)
    if row is None or row.worst_db >= LEAST_DB:
        return None
    which = [i for i, db in enumerate(row.psnr_db) if db < LEAST_DB]
    begin = f'{measured.setting}: "{preset}", {len(which)} of {len(row.psnr_db)} pictures'
    begin += f" ({_decibels(row, which)})"
    beside = [(name, measured.named(name)) for name in NEIGHBOURS]
    known = [f"{_decibels(one, which)} in {name}" for name, one in beside if one is not None]
    return f"{begin}; uncached, the same move to {', '.join(known)}" if known else begin


def _decibels(row: SettingRow, which: Sequence[int]) -> str:
    return " and ".join(f"{row.psnr_db[i]:.1f}" for i in which) + " dB"


def settled_table(settings: Sequence[Measured]) -> str:
    """How far the uncached pictures are from those of one step less and one more."""
    lines = []
    for measured in settings:
        found = [measured.named(name) for name in NEIGHBOURS]
        if None not in found:
            lines.append([str(measured.setting), *(_spread(row) for row in found if row)])
    return markdown(["", *NEIGHBOURS], lines)


def before_table(settings: Sequence[Measured]) -> str:
    """The default preset beside what it was until it was paced over noise."""
    lines = []
    for measured in settings:
        now, before = measured.preset(DEFAULT_PRESET), measured.named(BEFORE)
        if now is not None and before is not None:
            lines.append([str(measured.setting), _spread(now), _spread(before)])
    return markdown(["", f'"{DEFAULT_PRESET}"', BEFORE.removeprefix(f"{OURS} ")], lines)


def forecasts_table(settings: Sequence[Measured]) -> str:
    """Presets beside themselves with other forecasts, where more than they is measured."""
    presets = set(map(name_of_preset, PRESETS))
    lines = []
    for measured in settings:
        found = {name: measured.named(name) for name in FORECASTS.values()}
        if any(row is not None and name not in presets for name, row in found.items()):
            cells = [NOTHING if row is None else _spread(row) for row in found.values()]
            lines.append([str(measured.setting), *cells])
    return markdown(["", *FORECASTS], lines)


def shortfalls(settings: Sequence[Measured]) -> Iterator[str]:
    """Where another is ahead of all of ours, a sentence for all neighbouring shares of which the
    same two are the best."""
    for measured in settings:
        pairs = [(share, _best_where_behind(measured, share)) for share in ALL_SHARES]
        for pair, found in itertools.groupby(pairs, key=operator.itemgetter(1)):
            if pair is None:
                continue
            shares = [f"{share:g}" for share, _ in found]
            at = " to ".join(dict.fromkeys((shares[0], shares[-1])))
            ours, other = pair
            where = f"- {measured.setting}, at {at}: {_named(other)} has {other.mean_db:.1f} dB"
            if ours is None:
                yield f"{where}, and none of ours runs so little"
            else:
                yield f"{where}, {other.mean_db - ours.mean_db:.1f} more than {_named(ours)}"


def _best_where_behind(
    measured: Measured, share: float
) -> tuple[SettingRow | None, SettingRow] | None:
    """Ours and the other; None where ours isn't behind."""
    ours, other = measured.best_two(share)
    if other is None or (ours is not None and ours.mean_db >= other.mean_db):
        return None
    return ours, other


def narrow_leads(settings: Sequence[Measured]) -> Iterator[str]:
    """Where the default preset is less than 3 dB above cache-dit's best or fewer steps, a sentence
    each."""
    for measured in settings:
        for camp in (CACHE_DIT, FEWER):
            closest = measured.closest(DEFAULT_PRESET)
            pair = _default_and_best(closest, camp) or _default_and_best(measured, camp)
            if pair is not None and (lead := pair[0].mean_db - pair[1].mean_db) < CLEAR_LEAD_DB:
                where = f"{measured.setting}, {len(pair[0].psnr_db)} pictures"
                yield f"- {where}: {lead:.1f} dB above {_named(pair[1])}"


def _default_and_best(measured: Measured, camp: str) -> tuple[SettingRow, SettingRow] | None:
    ours = measured.preset(DEFAULT_PRESET)
    other = None if ours is None else measured.best(ours.share, frozenset({camp}))
    return None if ours is None or other is None else (ours, other)


def harm_table(rows: Sequence[SettingRow]) -> str:
    """Each case with all presets; those that were changed since are left out."""
    now = {name_of_preset(name): repr(sorted(o.items())) for name, o in PRESETS.items()}
    found = {(row.setting, row.contender): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.setting for row in rows):
        cells = []
        for name in PRESETS:
            row = found.get((case, name_of_preset(name)))
            fewer = found.get((case, beside(name)))
            if row is None or fewer is None or row.options != now[row.contender]:
                cells.append(NOTHING)
                continue
            is_equal = min(row.psnr_db) >= EQUAL_DB
            near = "equal" if is_equal else f"{row.mean_db:.1f} dB ({fewer.mean_db:.1f})"
            cells.append(f"{row.share:.2f}: {near}")
        lines.append([case, *cells])
    return markdown(["", *(f'"{name}"' for name in PRESETS)], lines)


def page_of(settings: Sequence[Measured], harm: Sequence[SettingRow]) -> str:
    """The whole page, as Markdown."""
    rows = [row for measured in settings for row in measured.rows]
    parts = [
        texts.INTRODUCTION.format(num=len(rows[0].psnr_db)),
        texts.BEST,
        overview_table(settings),
        texts.SPREADS,
        presets_table(settings),
        lost_pictures(settings),
    ]
    most = MOST_PICTURES["reporting"]
    for preset in (DEFAULT_PRESET, CHEAPEST_PRESET):
        parts += [
            texts.LEADS.format(preset=preset, prompts=NUM_PICTURES // 2, most=most),
            lead_table(settings, preset),
        ]
    parts += [texts.DAMPED, forecasts_table(settings), texts.SETTLED, settled_table(settings)]
    parts += [texts.CHANGED, before_table(settings)]
    measured = {str(one.setting) for one in settings}
    missing = [str(one) for one in all_settings() if str(one) not in measured]
    if missing:
        parts.append(f"Not measured yet, by the same command: {'; '.join(missing)}.")
    behind = list(shortfalls(settings))
    parts += [texts.BEHIND, "\n".join(behind) if behind else "Nowhere among these."]
    narrow = list(narrow_leads(settings))
    parts += [texts.NARROW, "\n".join(narrow) if narrow else "Nowhere among these."]
    parts += [texts.HARM, harm_table(harm)] if harm else []
    parts += [texts.NAMES, names_table(settings)]
    parts.append(f"Machines: {'; '.join(dict.fromkeys(row.machine for row in rows))}.")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.quality_overview", description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parsed = parser.parse_args(arguments)
    settings = measured_in(parsed.rows / ROWS_FILE)
    if not settings:
        parser.error(f"{parsed.rows} has no rows of these weights and presets")
    parsed.page.write_text(
        page_of(settings, read_setting_rows(parsed.rows / HARM_FILE)), encoding="utf-8"
    )
    print(parsed.page)
