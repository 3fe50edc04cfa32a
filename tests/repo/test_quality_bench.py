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
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality import __main__ as quality
from bench.quality.draw import Drawn, artist_for, by_ours, by_pipeline
from bench.quality.judge import Jury, References, check, row_of
from bench.quality.methods import PUBLISHED, QUICK, THIN, all_methods
from bench.quality.models import MODELS
from bench.quality.pairs import every
from bench.quality.peers import (
    with_cache_dit,
    with_first_block_cache,
    with_mag_cache,
    with_taylorseer,
    with_taylorseer_lite,
)
from bench.quality.plot import color_of, front
from bench.quality.rows import Key, Row, append_row, read_rows, table_of
from bench.quality.solvers import adams_bashforth, euler, largest_difference, unipc
from bench.train.scenes import SCENES

NUM_STEPS = 6


def rows_of(method="x", count=1):
    key = Key("m", "v", 28, 4, 2, method)
    read_back = {"color": 1.0, "shape": 0.5}
    row = Row(key, "g", 0.5, 40.0, 38.0, 0.99, 35.0, 0.9, read_back, 7.0, 1.0, "machine")
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
    assert lines[1].split() == [
        "x1",
        "0.750",
        "equal",
        "38.0",
        "0.9900",
        "35.0",
        "0.9000",
        "75.0%",
        "7.0",
    ]
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


def test_a_version_is_of_weights_and_guidance(monkeypatch, tmp_path):
    model = MODELS["flux-scenes"]
    assert model.version == MODELS["flux-scenes"].version
    assert model.version != replace(model, guidance=2.0).version
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    known = model.version
    monkeypatch.setattr("bench.quality.models.kept_in", lambda _folder: tmp_path)
    assert model.version != known


def test_no_two_methods_have_one_name():
    names = [method.name for method in all_methods()]
    assert len(set(names)) == len(names)
    quick = {method.group for method in all_methods() if method.tier <= QUICK}
    peers_and_rivals = {m.group for m in all_methods() if not m.group.startswith("ours")}
    assert {g for g in peers_and_rivals if "named" not in g and "order 2" not in g} <= quick
    assert {"uncached", "ours, presets", "ours, DBPrune"} <= quick
    tiers = [method.tier for method in all_methods()]
    assert tiers == sorted(tiers) and 10 <= tiers.count(THIN) <= 20


def test_the_same_options_have_the_same_colour():
    groups = ["ours, threshold", "ours, DBPrune", "cache-dit, threshold", "diffusers, MagCache"]
    colors = [color_of(group, groups) for group in groups]
    assert colors[0] == colors[2] and len(set(colors)) == 3


@pytest.fixture(scope="module")
def artist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncached")
    return artist_for(MODELS["flux-scenes-guided"], 1, 1, folder)


@pytest.mark.e2e
def test_what_runs_is_counted_and_checked(artist):
    uncached = artist.uncached(NUM_STEPS)
    references = References(uncached, uncached)
    check(artist, references, NUM_STEPS)
    with pytest.raises(RuntimeError, match="ours at threshold 0 is off by"):
        check(artist, References(uncached.flip(1), uncached), NUM_STEPS)
    mask = {"steps_computation_mask": (1, 1, 0, 1, 0, 0), "steps_computation_policy": "static"}
    settings = {"Fn_compute_blocks": 4, "Bn_compute_blocks": 2, **mask}
    ours = by_ours(artist, settings, NUM_STEPS)
    # Three of six steps run 6 of 12 blocks, on both branches.
    assert ours.share == pytest.approx(1 - 3 / 6 * 6 / 12)
    assert ours.curves == [[1, 1, 0.5, 1, 0.5, 0.5]]
    assert ours.seen == [[None] * 6]
    assert not torch.equal(ours.pictures, uncached)
    peer = by_pipeline(artist, with_cache_dit(artist.model, settings, 0, prunes=False), NUM_STEPS)
    assert peer.curves[0] == pytest.approx(ours.curves[0])
    always = with_first_block_cache(artist.model, 1e9, NUM_STEPS)
    first_alone = by_pipeline(artist, always, NUM_STEPS)
    assert first_alone.share == pytest.approx((12 + (NUM_STEPS - 1)) / (12 * NUM_STEPS), abs=1e-5)
    assert first_alone.curves[0] == pytest.approx([1, *[1 / 12] * 5])


def saves_half(_content, path):
    """In place of `torch.save`: somebody stops the run in the middle of it."""
    path.write_bytes(b"half")
    raise KeyboardInterrupt


@pytest.mark.e2e
def test_a_stop_while_saving_leaves_no_broken_pictures(artist, tmp_path, monkeypatch):
    here = replace(artist, folder=tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", saves_half)
        here.uncached(2)
    assert here.uncached(2).shape == (1, 3, 64, 64)


@pytest.mark.e2e
def test_uncached_pictures_are_drawn_anew_for_another_batch(artist, tmp_path, capsys):
    for batch in (1, 1, 2):
        replace(artist, folder=tmp_path, batch=batch).uncached(2)
    assert capsys.readouterr().out.count("draws 1 pictures in 2 steps") == 2


@pytest.mark.e2e
def test_other_caches_skip_blocks(artist):
    for pipe in (
        with_taylorseer_lite(artist.model, 2, NUM_STEPS),
        with_mag_cache(artist.model, 10.0, NUM_STEPS),
    ):
        assert 0.3 < by_pipeline(artist, pipe, NUM_STEPS).share < 1


@pytest.mark.slow
@pytest.mark.e2e
def test_published_rules_are_told_what_they_need(artist):
    methods = {method.name: method for method in all_methods()}
    shares = {}
    for rule, (_, thresholds) in PUBLISHED.items():
        name = f"ours {rule} {max(thresholds):g}"
        shares[rule] = methods[name].draw(artist, 2 * NUM_STEPS).share
        assert methods[f"{name} order 1"].group == f"ours, {rule} order 1"
    assert len(set(shares.values())) == len(PUBLISHED) and max(shares.values()) < 1
    # Packed latents don't show their grid, those of clips do.
    assert (MODELS["flux-scenes"].grid, MODELS["wan-clips"].grid) == ((8, 8), None)


@pytest.mark.e2e
def test_a_clip_is_drawn_the_same_alone_and_beside_others(tmp_path):
    model = MODELS["wan-clips-guided"]
    alone, together = (artist_for(model, 3, batch, tmp_path / "") for batch in (1, 2))
    assert [list(which) for which in together.batches] == [[0, 1], [2]]
    clips = together.uncached(2)
    assert clips.shape == (3, 8, 3, 32, 32)
    assert torch.allclose(alone.draw(model.load(), 2), clips, atol=1e-4)
    # Attention runs at the first steps alone; by their own patterns it would at all.
    assert by_pipeline(together, with_taylorseer(model, 4, 8), 8).share < 0.9


def test_the_jury_reads_drawings_and_knows_noise():
    jury, model = Jury(MODELS["flux-scenes"]), MODELS["flux-scenes"]
    drawings, picks = SCENES.draw(64, torch.Generator().manual_seed(3))
    pictures = (drawings.clamp(-1, 1) + 1) / 2
    read_back = jury.read_back(pictures)
    # The drawings are of other prompts than the model's pictures.
    assert set(read_back) == set(SCENES.slots)
    right = (picks == model.picks).float().mean(0)
    assert list(read_back.values()) == pytest.approx(right.tolist(), abs=0.1)
    close, far = jury.distance(pictures), jury.distance(torch.rand_like(pictures))
    assert 0 < close < far / 2
    assert jury.distance(pictures) == close
    assert jury.distance(pictures[:1]) is None


def test_figures_of_a_method():
    references = References(torch.zeros(2, 3, 64, 64), torch.full((2, 3, 64, 64), 0.5))
    pictures = torch.stack([torch.full((3, 64, 64), 0.1), torch.full((3, 64, 64), 0.01)])
    jury = Jury(MODELS["flux-scenes"])
    row = row_of(rows_of()[0].key, "g", Drawn(pictures, 0.5), references, jury, 2.0)
    assert (row.psnr_db, row.psnr_db_worst) == pytest.approx((30.0, 20.0), abs=1e-4)
    assert row.psnr_db_converged == pytest.approx(
        -10 * (math.log10(0.4) + math.log10(0.49)), abs=1e-4
    )
    equal = row_of(rows_of()[0].key, "g", Drawn(references.uncached, 1.0), references, jury, 2.0)
    assert (equal.psnr_db, equal.ssim) == (None, 1.0)
    # One equal picture is left out of the mean.
    pictures[1] = references.uncached[1]
    row = row_of(rows_of()[0].key, "g", Drawn(pictures, 0.5), references, jury, 2.0)
    assert row.psnr_db == row.psnr_db_worst == pytest.approx(20.0, abs=1e-4)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path, capsys):
    arguments = [
        "--models",
        "flux-scenes",
        "--steps",
        "4",
        "--pictures",
        "1",
        "--out",
        str(tmp_path),
    ]
    quality.main([*arguments, "--only", "euler 0.5"])
    assert "[1/1] flux-scenes 4 steps, euler 0.5: share 0.500" in capsys.readouterr().out
    quality.main([*arguments, "--only", "euler 0.5"])
    assert "[1/" not in capsys.readouterr().out
    quality.main([*arguments, "--only", "0.5"])
    out = capsys.readouterr().out
    assert "[2/2]" in out and "euler 0.5: share" not in out
    names = [json.loads(line)["key"]["method"] for line in (tmp_path / "flux-scenes.jsonl").open()]
    assert names == ["euler 0.5", "adams-bashforth 0.5", "unipc 0.5"]
    assert matplotlib.image.imread(tmp_path / "flux-scenes-4.png").shape[:2] == (1900, 1500)


@pytest.mark.parametrize(
    "wrong", [["--only", "no such"], ["--steps", "1"], ["--pictures", "0"], ["--batch", "0"]]
)
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        quality.parse_arguments(wrong)
    assert "error:" in capsys.readouterr().err
