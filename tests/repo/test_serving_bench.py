"""The bench of serving draws the same pictures in each way, and says what it counted."""

import json
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import serving
from bench.serving import MAX, MODES, ONE, PER_SAMPLE, Row, Studio, measure


@pytest.fixture(scope="module")
def studio():
    torch.compiler.reset()
    return Studio(3, 8, "eager")


@pytest.mark.e2e
def test_each_way_draws_the_pictures_that_were_asked_for(studio):
    one, as_one, per_sample = rows = measure(studio, (1.0,), num_rounds=1)
    assert [row.mode for row in rows] == list(MODES)
    assert one.hit_rate > 0
    assert per_sample.hit_rate == pytest.approx(one.hit_rate)
    assert per_sample.worst_difference < 1e-4
    assert one.worst_difference is as_one.worst_difference is None
    assert all(row.pictures_a_second > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.e2e
def test_pictures_that_wait_join_as_others_are_finished(studio, monkeypatch):
    monkeypatch.setattr(serving, "BATCH", 2)
    with torch.no_grad():
        alone = serving.draw_one_at_a_time(studio)
        drawn = serving.draw_per_sample(studio)
    for own, expected in zip(drawn.pictures, alone.pictures, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_a_ratio_is_of_the_same_setting():
    rows = tuple(
        Row(mode, tolerance, 0.5, speed * (1 + tolerance), 1e-6 if mode == PER_SAMPLE else None)
        for tolerance in (0.0, 1.0)
        for mode, speed in ((ONE, 1.0), (MAX, 2.0), (PER_SAMPLE, 3.0))
    )
    results = serving.Results(serving.this_machine(), 3, 5, "eager", rows)
    lines = [line.split() for line in serving.as_text(results).splitlines()]
    assert [line[-1] for line in lines if line[1:2] == ["one"]] == ["3.00", "3.00"]
    assert [line[-1] for line in lines if line[1:2] == ["max"]] == ["1.50", "1.50"]


def test_figures_are_kept_where_that_is_asked_for(tmp_path, monkeypatch):
    measured = (Row(ONE, 0.5, 0.25, 2.0, None), Row(PER_SAMPLE, 0.5, 0.25, 3.0, 1e-6))
    monkeypatch.setattr(serving, "Studio", lambda *_: None)
    monkeypatch.setattr(serving, "measure", lambda *_: measured)
    kept = tmp_path / "serving.json"
    serving.main(["--pictures", "2", "--json", str(kept)])
    results = json.loads(kept.read_text())
    assert [row["mode"] for row in results["rows"]] == [ONE, PER_SAMPLE]
    assert results["num_pictures"] == 2
