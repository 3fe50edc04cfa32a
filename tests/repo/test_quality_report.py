"""The page that the rows of the quality bench are told on."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality import report as quality_report
from bench.quality.models import MODELS
from bench.quality.rows import Key, Row, append_row
from bench.quality.tables import (
    best_table,
    pairs_of,
    parity_sentence,
    to_converged,
    to_uncached,
    whole_table,
)

ROW = Row(
    Key("flux-scenes", MODELS["flux-scenes"].version, 28, 64, 8, "uncached"),
    group="uncached", share=1.0, psnr_db=None, psnr_db_worst=None, ssim=1.0, psnr_db_converged=44.0,
    ssim_converged=0.9, read_back={"color": 1.0, "shape": 0.5}, frechet=7.0, seconds=1.0,
    machine="a machine",
)  # fmt: skip


def row(method, share, psnr_db, converged=40.0, **changes):
    return replace(
        ROW,
        key=replace(ROW.key, method=method),
        group=method.partition(" ")[0],
        share=share,
        psnr_db=psnr_db,
        psnr_db_worst=psnr_db,
        psnr_db_converged=converged,
        **changes,
    )


ROWS = [
    ROW,
    row("ours preset fast", 0.46, 44.0, converged=39.0),
    row("ours A", 0.6, 41.0),
    row("cache-dit A", 0.6, 41.0),
    row("ours B", 0.5, 38.0),
    row("cache-dit B", 0.48, 36.5),
    row("diffusers C", 0.5, 37.0),
    row("euler 0.5", 0.5, 34.0),
    row("unipc 0.5", 0.5, 33.0, converged=48.0),
]


def cells_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_what_is_equal_is_one_line():
    header, _, *lines = cells_of(whole_table(ROWS))
    assert [line[0] for line in lines] == [
        "uncached", "A: ours and cache-dit", "ours B", "diffusers C", "euler 0.5", "unipc 0.5",
        "cache-dit B", "**ours preset fast**",
    ]  # fmt: skip
    assert lines[0] == [
        "uncached",
        "1.00",
        "equal",
        "equal",
        "1.0000",
        "44.0",
        "0.9000",
        "75.0",
        "7.0",
    ]
    assert len(header) == len(lines[0])


def test_the_best_of_each_camp_within_a_share():
    header, _, *lines = cells_of(best_table(ROWS, to_uncached))
    by_share = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    most, half, least = by_share["0.65"], by_share["0.50"], by_share["0.30"]
    assert most["ours"] == "**44.0** (preset fast, 0.46)"
    assert most["cache-dit"] == "41.0 (A, 0.60)"
    assert half["cache-dit"] == "36.5 (B, 0.48)"
    assert half["fewer second-order steps"] == "33.0 (0.5, 0.50)"
    assert set(least.values()) == {"0.30", ""}
    _, _, *lines = cells_of(best_table(ROWS, to_converged))
    assert lines[2][-1] == "**48.0** (0.5, 0.50)"


def test_what_differs_at_equal_options_is_said():
    assert [pair.name for pair in pairs_of(ROWS)] == ["A", "B"]
    assert parity_sentence(ROWS) == (
        "Same options in ours and cache-dit: 2; equal in every figure: 1. B: ours +1.5 dB, at 0.50 "
        "of the work against 0.48."
    )


def test_the_page_has_every_section_with_its_plot(tmp_path, capsys):
    for one in ROWS:
        append_row(tmp_path / "flux-scenes.jsonl", one)
        append_row(tmp_path / "flux-scenes.jsonl", replace(one, key=replace(one.key, num_steps=50)))
        for other in ({"batch": 1}, {"version": "0"}):
            append_row(tmp_path / "flux-scenes.jsonl", replace(one, key=replace(one.key, **other)))
    timed = {"version": ROW.key.version, "num_steps": 28, "num_pictures": 8, "num_rounds": 3}
    ratio = {"low": 0.7, "median": 0.72, "high": 0.75}
    timed |= {"machine": "a clock", "methods": [{"name": "ours B", "ratio": ratio}]}
    (tmp_path / "time-flux-scenes.json").write_text(json.dumps(timed))
    where = ["--rows", str(tmp_path), "--docs", str(tmp_path)]
    quality_report.main(where)
    page = (tmp_path / "quality-even.md").read_text()
    titles = [line for line in page.splitlines() if line.startswith("## ")]
    assert titles == [f"## flux-scenes, guidance 1, {steps} steps" for steps in (28, 50)]
    assert page.count(whole_table(ROWS)) == 2 and "Machine: a machine." in page
    assert page.count("Machine: a clock.") == 1
    assert "| ours B | 0.72 (0.70 to 0.75) | 0.50 | 38.0 | 40.0 |" in page
    assert page.count("](quality-time-flux-scenes.png)") == 1
    pixels = matplotlib.image.imread(tmp_path / "quality-time-flux-scenes.png")
    # Something is drawn in the colour of ours: orange.
    assert (abs(pixels[..., :3] - (1.0, 0.498, 0.055)).max(-1) < 0.01).any()
    for steps in (28, 50):
        pixels = matplotlib.image.imread(tmp_path / f"quality-flux-scenes-{steps}.png")
        assert pixels.shape[:2] == (1900, 1500)


def test_no_rows_are_no_page(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        quality_report.main(["--rows", str(tmp_path)])
    assert stopped.value.code == 2
    assert "has no rows of 64 pictures by these weights" in capsys.readouterr().err
