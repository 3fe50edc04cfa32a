"""The bench of serving draws the same pictures in each way, and says what it counted."""

import json
import sys
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import serving
from bench.common.spread import Spread
from bench.serving import MAX, MODES, ONE, PER_SAMPLE, Row, Studio, check, measure

TIMES = Spread(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def studio():
    torch.compiler.reset()
    return Studio(3, 8, "eager")


@pytest.mark.e2e
def test_each_way_draws_the_pictures_that_were_asked_for(studio):
    assert check(studio, (1.0,)) < 1e-4
    rows = measure(studio, (1.0,), num_rounds=1)
    assert [row.mode for row in rows] == [*MODES, *MODES]
    assert [row.traffic for row in rows] == ["alike"] * 3 + ["mixed"] * 3
    for one, _, per_sample in (rows[:3], rows[3:]):
        assert one.hit_rate > 0
        assert per_sample.hit_rate == pytest.approx(one.hit_rate)
        assert per_sample.to_it.median == per_sample.cpu_to_it.median == 1
    assert all(row.pictures_a_second.median > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.e2e
def test_pictures_that_differ_end_it(studio, monkeypatch):
    monkeypatch.setattr(serving, "MAY_DIFFER", -1.0)
    with pytest.raises(SystemExit, match="not what is drawn alone at error_tolerance=1: differs"):
        check(studio, (1.0,))


@pytest.mark.slow
@pytest.mark.e2e
def test_pictures_that_wait_join_as_others_are_finished(studio, monkeypatch):
    monkeypatch.setattr(serving, "BATCH", 2)
    studio.ask_for((0.5, 1.0, 1.5))
    with torch.no_grad():
        alone = serving.draw_one_at_a_time(studio)
        drawn = serving.draw_per_sample(studio)
    for own, expected in zip(drawn.pictures, alone.pictures, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def row(mode, ratio):
    return Row("alike", mode, 0.5, 0.25, TIMES, TIMES, Spread(ratio, ratio, ratio), TIMES)


def test_a_ratio_is_to_each_of_the_others():
    rows = (row(ONE, 3.0), row(MAX, 1.5), row(PER_SAMPLE, 1.0))
    results = serving.Results(serving.this_machine(), 3, 5, 1, "eager", 1e-6, rows)
    one, as_one, own = serving.as_text(results).splitlines()[1:4]
    assert "3.00 (3.00 to 3.00)" in one and "1.50 (1.50 to 1.50)" in as_one
    assert own.split()[-1] == "1000"


def test_figures_are_kept_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "Studio", lambda *_: None)
    monkeypatch.setattr(serving, "check", lambda *_: 1e-6)
    monkeypatch.setattr(serving, "measure", lambda *_: (row(ONE, 2.0), row(PER_SAMPLE, 1.0)))
    kept = tmp_path / "serving.json"
    serving.main(["--pictures", "2", "--json", str(kept)])
    results = json.loads(kept.read_text())
    assert [row["mode"] for row in results["rows"]] == [ONE, PER_SAMPLE]
    assert (results["num_pictures"], results["worst_difference"]) == (2, 1e-6)
