"""The quality bench: what it counts, what it refuses, and that it goes on where it was stopped."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import quality
from bench._quality_draw import Drawn, artist_for, by_ours, by_pipeline, by_solver
from bench._quality_judge import References, check, row_of
from bench._quality_methods import all_methods, every
from bench._quality_models import MODELS
from bench._quality_peers import with_first_block_cache, with_mag_cache, with_taylorseer_lite
from bench._quality_rows import Key, Row, append_row, front, read_rows, table_of
from bench._quality_solvers import adams_bashforth, euler, largest_difference, unipc

NUM_STEPS = 6


def rows_of(method="x", count=1):
    key = Key("m", 28, 4, method)
    row = Row(key, "g", 0.5, 40.0, 38.0, 0.99, 35.0, 0.9, 1.0, "machine")
    return [replace(row, key=replace(key, method=f"{method}{i}")) for i in range(count)]


def test_rows_are_read_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = rows_of(count=3)
    assert read_rows(path) == []
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_a_line_that_was_cut_off_is_measured_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    first, second = rows_of(count=2)
    append_row(path, first)
    path.write_text(path.read_text() + '{"key": {"mod')
    assert read_rows(path) == [first]
    append_row(path, second)
    assert read_rows(path) == [first, second]


def test_table_goes_by_share():
    low, high = rows_of(count=2)
    lines = table_of([low, replace(high, share=0.75, psnr_db=None)]).splitlines()
    assert lines[1].split() == ["x1", "0.750", "equal", "38.0", "0.9900", "35.0", "0.9000"]
    assert lines[2].split()[:3] == ["x0", "0.500", "40.0"]


def test_the_front_is_what_nothing_cheaper_beats():
    points = [(0.5, 30.0), (0.7, 29.0), (0.6, 35.0), (0.6, 33.0), (0.9, 36.0)]
    assert front(points) == [(0.5, 30.0), (0.6, 35.0), (0.9, 36.0)]
    assert front([]) == []


def solved(scheduler, num_steps):
    """x' = x over the noise levels from 1 to 0, from x = 1: ends at 1 / e."""
    scheduler.set_timesteps(num_steps, sigmas=torch.linspace(1, 1 / num_steps, num_steps).numpy())
    scheduler.set_begin_index(0)
    x = torch.ones(1)
    for timestep in scheduler.timesteps:
        (x,) = scheduler.step(x, timestep, x, return_dict=False)
    return x.item()


def test_adams_bashforth_is_of_order_two():
    errors = [abs(solved(adams_bashforth(), n) - math.exp(-1)) for n in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    euler_errors = [abs(solved(euler(), n) - math.exp(-1)) for n in (20, 40)]
    assert euler_errors[0] / euler_errors[1] == pytest.approx(2, rel=0.1)
    assert errors[0] < euler_errors[0] / 10


def test_adams_bashforth_begins_anew_with_each_picture():
    scheduler = adams_bashforth()
    assert solved(scheduler, 10) == solved(scheduler, 10)


def test_solvers_share_a_schedule():
    assert largest_difference(euler(), adams_bashforth(), 28) == 0
    assert largest_difference(euler(), unipc(), 28) < 1e-5


def test_masks_are_even():
    assert every(9, 2, 3) == (1, 1, 1, 0, 1, 0, 1, 0, 1)
    assert every(8, 3, 2) == (1, 1, 0, 0, 1, 0, 0, 1)


def test_no_two_methods_have_one_name():
    names = [method.name for method in all_methods()]
    assert len(set(names)) == len(names)
    quick = {method.group for method in all_methods() if method.is_quick}
    peers_and_rivals = {m.group for m in all_methods() if not m.group.startswith("ours")}
    assert {*peers_and_rivals, "ours, presets", "ours, error control, order 1"} <= quick


@pytest.fixture(scope="module")
def artist():
    return artist_for(MODELS["tiny-flux-guided"](), 1)


@pytest.mark.e2e
def test_what_runs_is_counted_and_checked(artist):
    uncached = by_solver(artist, euler(), NUM_STEPS, NUM_STEPS)
    references = References(uncached.pictures, uncached.pictures)
    check(artist, references, NUM_STEPS)
    with pytest.raises(RuntimeError, match="ours at threshold 0 is off by"):
        check(artist, References(uncached.pictures.flip(1), uncached.pictures), NUM_STEPS)
    mask = {"steps_computation_mask": (1, 1, 0, 1, 0, 0), "steps_computation_policy": "static"}
    settings = {"Fn_compute_blocks": 4, "Bn_compute_blocks": 2, **mask}
    ours = by_ours(artist, settings, NUM_STEPS)
    # Three of six steps run 6 of 18 blocks, on both branches.
    assert ours.share == pytest.approx(1 - 3 / 6 * 12 / 18)
    assert not torch.equal(ours.pictures, uncached.pictures)
    always = with_first_block_cache(artist.model, 1e9, NUM_STEPS)
    assert by_pipeline(artist, always, NUM_STEPS).share == pytest.approx(
        (18 + (NUM_STEPS - 1)) / (18 * NUM_STEPS), abs=1e-5
    )


@pytest.mark.e2e
def test_other_caches_skip_blocks(artist):
    for pipe in (
        with_taylorseer_lite(artist.model, 2, NUM_STEPS),
        with_mag_cache(artist.model, 10.0, NUM_STEPS),
    ):
        assert 0.3 < by_pipeline(artist, pipe, NUM_STEPS).share < 1


def test_figures_of_a_method():
    references = References(torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.5))
    pictures = torch.stack([torch.full((3, 16, 16), 0.1), torch.full((3, 16, 16), 0.01)])
    row = row_of(rows_of()[0].key, "g", Drawn(pictures, 0.5), references, 2.0)
    assert (row.psnr_db, row.psnr_db_worst) == pytest.approx((30.0, 20.0), abs=1e-4)
    assert row.psnr_db_converged == pytest.approx(
        -10 * (math.log10(0.4) + math.log10(0.49)), abs=1e-4
    )
    equal = row_of(rows_of()[0].key, "g", Drawn(references.uncached, 1.0), references, 2.0)
    assert (equal.psnr_db, equal.ssim) == (None, 1.0)


@pytest.mark.e2e
def test_a_run_goes_on_where_it_was_stopped(tmp_path, capsys):
    arguments = ["--models", "tiny-flux", "--steps", "4", "--pictures", "1", "--out", str(tmp_path)]
    quality.main([*arguments, "--only", "euler 0.5"])
    assert "[1/1] tiny-flux 4 steps, euler 0.5: share 0.500" in capsys.readouterr().out
    quality.main([*arguments, "--only", "euler 0.5"])
    assert "[1/" not in capsys.readouterr().out
    quality.main([*arguments, "--only", "0.5"])
    out = capsys.readouterr().out
    assert "[2/2]" in out and "euler 0.5: share" not in out
    names = [json.loads(line)["key"]["method"] for line in (tmp_path / "rows.jsonl").open()]
    assert names == ["euler 0.5", "adams-bashforth 0.5", "unipc 0.5"]
    assert matplotlib.image.imread(tmp_path / "tiny-flux-4.png").shape[:2] == (840, 1680)


@pytest.mark.parametrize("wrong", [["--only", "no such"], ["--steps", "1"], ["--pictures", "0"]])
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        quality.parse_arguments(wrong)
    assert "error:" in capsys.readouterr().err
