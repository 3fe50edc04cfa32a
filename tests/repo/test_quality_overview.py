"""The page of quality on schedules that people sample with."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality import overview
from bench.quality.contenders import (
    CACHE_DIT,
    DIFFUSERS_CAMP,
    FEWER,
    OURS,
    UNCACHED,
    all_contenders,
)
from bench.quality.overview import (
    Measured,
    before_table,
    forecasts_table,
    lead_table,
    lost_pictures,
    narrow_leads,
    overview_table,
    presets_table,
    settled_table,
    shortfalls,
)
from bench.quality.setting_rows import SettingRow, append_setting_row
from bench.quality.settings import all_settings
from dit_cachegraph.policy.presets import PRESETS

SETTING = next(iter(all_settings()))
OPTIONS = {contender.name: contender.options for contender in all_contenders()}
PRESET = 'ours "balanced"'


def row(contender, camp, share, *psnr_db, setting=SETTING, **changes):
    made = SettingRow(
        str(setting), "reporting", setting.model.version, contender, camp,
        OPTIONS.get(contender, ""), share, psnr_db, 1.0, "a machine",
    )  # fmt: skip
    return replace(made, **changes)


ROWS = [
    row("uncached", UNCACHED, 1.0, 100.0, 100.0),
    row(PRESET, OURS, 0.5, 40.0, 50.0),
    row("cache-dit mask fast order 1", CACHE_DIT, 0.44, 43.0, 43.0),
    row("fewer steps 0.45", FEWER, 0.46, 30.0, 30.0),
    row("fewer steps 0.3", FEWER, 0.29, 28.0, 28.0),
]


def lines_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_best_at_a_share_is_the_nearest_of_no_more_work():
    (line,) = lines_of(overview_table([Measured(SETTING, ROWS)]))[2:]
    assert line == [
        str(SETTING), "– / 28.0", "– / 43.0", "45.0 / 43.0 (**+2.0**)", "45.0 / 43.0 (**+2.0**)"
    ]  # fmt: skip
    better = row("fewer steps 0.6", FEWER, 0.607, 46.0, 46.0)
    (line,) = lines_of(overview_table([Measured(SETTING, [*ROWS, better])]))[2:]
    assert line[3] == "45.0 / 46.0 (-1.0)"
    *_, last = shortfalls([Measured(SETTING, [*ROWS, better])])
    begin = f"- {SETTING}, at 0.6 to 0.8: fewer steps 0.6 (0.61) has 46.0 dB, "
    assert last == f"{begin}1.0 more than {PRESET} (0.50)"
    closer = row("ours y", OURS, 0.62, 45.5, 45.5)
    *_, last, after = shortfalls([Measured(SETTING, [*ROWS, better, closer])])
    assert last == f"- {SETTING}, at 0.6: {last.partition(': ')[2]}"
    assert after.startswith(f"- {SETTING}, at 0.61 to 0.8: fewer steps 0.6 (0.61)")
    assert after.endswith("0.5 more than ours y (0.62)")
    level = row("ours z", OURS, 0.6, 46.0, 46.0)
    assert not any(
        "0.6 (0.61)" in t for t in shortfalls([Measured(SETTING, [*ROWS, better, level])])
    )


def test_places_where_the_default_leads_by_little_are_told():
    ahead = row(PRESET, OURS, 0.5, 45.0, 45.0)
    few, many = (
        [
            ahead,
            row("cache-dit x", CACHE_DIT, 0.5, other, other),
            row("fewer steps 0.5", FEWER, 0.5, 42.0, 42.0),
            row("fewer steps 0.6", FEWER, 0.6, 44.0, 44.0),
        ]
        for other in (42.1, 41.9)
    )
    told = f"- {SETTING}, 2 pictures: 2.9 dB above cache-dit x (0.50)"
    assert list(narrow_leads([Measured(SETTING, few)])) == [told]
    assert list(narrow_leads([Measured(SETTING, many)])) == []
    closer = [row(PRESET, OURS, 0.5, 43.0, 43.0, 43.0), replace(few[2], psnr_db=(42.0,) * 3)]
    assert list(narrow_leads([Measured(SETTING, many, Measured(SETTING, closer))])) == [
        f"- {SETTING}, 3 pictures: 1.0 dB above fewer steps 0.5 (0.50)"
    ]


def test_presets_tell_of_their_worst_pictures():
    header, _, line = lines_of(presets_table([Measured(SETTING, ROWS)]))
    by_name = dict(zip(header, line, strict=True))
    assert by_name['"balanced"'] == "0.50: 45.0 / 41.0 / 40.0"
    assert by_name['"fast"'] == "–"


def test_pictures_that_are_lost_are_told_beside_one_step_less_and_more():
    assert lost_pictures([Measured(SETTING, ROWS)]).endswith('"quality" or "balanced": none.')
    lost = row(PRESET, OURS, 0.5, 25.9, 50.0, 20.0)
    begin = f'- {SETTING}: "balanced", 2 of 3 pictures (25.9 and 20.0 dB)'
    assert lost_pictures([Measured(SETTING, [lost])]).endswith(begin)
    less = row("one step less", UNCACHED, 0.96, 41.0, 42.0, 18.0)
    told = f"{begin}; uncached, the same move to 41.0 and 18.0 dB in one step less"
    assert lost_pictures([Measured(SETTING, [lost, less])]).endswith(told)


def test_one_step_less_and_more_stand_beside_no_method():
    less, more = (
        row(name, UNCACHED, share, 60.0, 60.0)
        for name, share in (("one step less", 0.96), ("one step more", 1.04))
    )
    (line,) = lines_of(settled_table([Measured(SETTING, [*ROWS, less, more])]))[2:]
    assert line[1:] == ["0.96: 60.0 / 60.0 / 60.0", "1.04: 60.0 / 60.0 / 60.0"]
    assert lines_of(settled_table([Measured(SETTING, [*ROWS, less])]))[2:] == []
    best = Measured(SETTING, [*ROWS, less, more]).best(1.1, overview.OTHERS)
    assert best is not None and best.camp == CACHE_DIT


def test_the_default_stands_beside_what_it_was():
    before = row("ours E0.1 over steps", OURS, 0.6, 30.0, 30.0)
    header, _, line = lines_of(before_table([Measured(SETTING, [*ROWS, before])]))
    assert header[1:] == ['"balanced"', "E0.1 over steps"]
    assert line[1:] == ["0.50: 45.0 / 41.0 / 40.0", "0.60: 30.0 / 30.0 / 30.0"]
    assert lines_of(before_table([Measured(SETTING, ROWS)]))[2:] == []


def test_presets_stand_beside_themselves_with_other_forecasts():
    names = list(overview.FORECASTS.values())
    rows = [row(name, OURS, 0.4, 30.0 + i, 30.0 + i) for i, name in enumerate(names)]
    header, _, line = lines_of(forecasts_table([Measured(SETTING, rows)]))
    others = ["every third", "a whole line", "half a line"]
    assert header[1:] == ['"draft"', *others, '"fast"', "damped"]
    assert [cell.split()[1] for cell in line[1:]] == [f"{30 + i}.0" for i in range(6)]
    (line,) = lines_of(forecasts_table([Measured(SETTING, rows[:-1])]))[2:]
    assert line[-1] == "–"
    assert lines_of(forecasts_table([Measured(SETTING, [rows[0], rows[4]])]))[2:] == []
    assert set(names) <= set(OPTIONS)


def test_a_preset_stands_beside_those_of_no_more_work():
    (line,) = lines_of(lead_table([Measured(SETTING, ROWS)], "balanced"))[2:]
    assert line[1:] == [
        "45.0 dB at 0.50",
        "43.0 (+2.0), cache-dit mask fast order 1 (0.44)",
        "30.0 (+15.0), fewer steps 0.45 (0.46)",
    ]
    assert lines_of(lead_table([Measured(SETTING, ROWS)], "fast"))[2:] == []


CLOSER = [
    row(PRESET, OURS, 0.5, 41.0, 43.0, 42.0),
    row("fewer steps 0.45", FEWER, 0.46, 40.0, 40.0, 40.0),
]


def test_a_preset_stands_beside_those_of_as_many_pictures():
    closer = Measured(SETTING, CLOSER)
    (line,) = lines_of(lead_table([Measured(SETTING, ROWS, closer)], "balanced"))[2:]
    fewer = "40.0 (+2.0), fewer steps 0.45 (0.46)"
    assert line[1:] == ["42.0 dB at 0.50, 3 pictures", fewer, fewer]
    # Without the preset among them, they are of no use to its line.
    others = Measured(SETTING, ROWS, Measured(SETTING, CLOSER[1:]))
    assert lead_table([others], "balanced") == lead_table([Measured(SETTING, ROWS)], "balanced")


def test_rows_of_more_pictures_are_in_no_other_table(tmp_path):
    presets = [row(f'ours "{name}"', OURS, 0.7, 41.0, 41.0) for name in PRESETS]
    peer = row("diffusers MagCache 0.12", DIFFUSERS_CAMP, 0.5, 20.0, 20.0)
    closest = row('ours "balanced"', OURS, 0.7, 41.0, 41.0, 41.0, 41.0, 41.0)
    for one in [closest, *CLOSER, *ROWS[:1], *presets, *ROWS[2:], peer]:
        append_setting_row(tmp_path / "settings.jsonl", one)
    (measured,) = overview.measured_in(tmp_path / "settings.jsonl")
    assert {len(one.psnr_db) for one in measured.rows} == {2}
    assert measured.closer is not None
    found = [(one.contender, tuple(one.psnr_db)) for one in measured.closer.rows]
    assert found == [(one.contender, one.psnr_db) for one in CLOSER]
    assert measured.closest("balanced") is measured.closer.closer
    assert measured.closest("balanced").rows == [replace(closest, psnr_db=[41.0] * 5)]
    assert measured.closest("draft") is measured


def test_the_page_has_rows_of_today_alone(tmp_path, capsys):
    path, other = tmp_path / "settings.jsonl", list(all_settings())[1]
    presets = [row(f'ours "{name}"', OURS, 0.7, 41.0, 41.0) for name in PRESETS]
    for one in [*ROWS, *presets, row("diffusers MagCache 0.12", DIFFUSERS_CAMP, 0.5, 20.0, 20.0)]:
        append_setting_row(path, one)
    for changes in (
        {"half": "choosing"},
        {"version": "0"},
        {"contender": "no such"},
        {"contender": PRESET, "options": "other options"},
    ):
        append_setting_row(
            tmp_path / "settings.jsonl", replace(ROWS[1], setting=str(other), **changes)
        )
    where = ["--rows", str(tmp_path), "--page", str(tmp_path / "page.md")]
    overview.main(where)
    page = (tmp_path / "page.md").read_text()
    # The other has no rows of today, and is named as missing.
    assert f"| {SETTING} |" in page and f"| {other} |" not in page
    assert "Not measured yet, by the same command: " in page and str(other) in page
    assert "over 2 pictures" in page and "Machines: a machine." in page
    with pytest.raises(SystemExit):
        overview.main(["--rows", str(tmp_path / "none"), "--page", str(tmp_path / "page.md")])
    assert "has no rows" in capsys.readouterr().err
