"""The quality bench on schedules that people sample with."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality import contenders, measure_settings
from bench.quality.contenders import all_but_every, all_contenders, ours, to_the_last
from bench.quality.draw import artist_for, by_solver
from bench.quality.measure_settings import HALVES, MOST_PICTURES, parse_arguments
from bench.quality.models import NUM_PICTURES, begun
from bench.quality.schedules import SCHEDULES
from bench.quality.setting_rows import SettingRow, append_setting_row, read_setting_rows
from bench.quality.settings import AT_USUAL_STEPS, CROSSED, GUIDANCES, STEPS, all_settings

ROW = SettingRow(
    "a setting", "reporting", "v", "ours x", "ours", "[]", 0.5, (30.0, 40.0, 50.0), 1.0, "machine"
)


def setting_named(text):
    (found,) = [setting for setting in all_settings() if str(setting) == text]
    return found


def levels_of(setting, num_steps):
    """The noise levels that the setting's pipeline really gave its scheduler."""
    pipe = setting.model.load()
    setting.model.draw(pipe, range(1), num_steps)
    return pipe.scheduler.sigmas


def shifted(shift, num_steps):
    even = torch.linspace(1, 1 / num_steps, num_steps)
    return torch.cat([shift * even / (1 + (shift - 1) * even), torch.zeros(1)])


@pytest.mark.e2e
def test_schedules_are_those_that_pipelines_set():
    steps = 4
    for text, shift in (
        ("flux-scenes, even, guidance 1, 28 steps", 1.0),
        ("flux-scenes, shift 3, guidance 1, 28 steps", 3.0),
        # 64 tokens, on the line from 0.5 at 256 to 1.15 at 4096.
        (
            "flux-scenes, shift by size, guidance 3.5, 28 steps",
            math.exp(0.5 + (64 - 256) * (1.15 - 0.5) / (4096 - 256)),
        ),
        ("wan-clips, UniPC, flow shift 5, guidance 1, 28 steps", 5.0),
    ):
        found = levels_of(setting_named(text), steps)
        assert torch.allclose(found.float(), shifted(shift, steps), atol=2e-3), text
    unipc, dpm = (SCHEDULES[f"{name}, flow shift 5"]() for name in ("UniPC", "DPM++ 2M"))
    for scheduler in (unipc, dpm):
        scheduler.set_timesteps(28)
    assert torch.allclose(unipc.sigmas, dpm.sigmas, atol=5e-3)
    by_size = setting_named("flux-scenes, DPM++ 2M, shift by size, guidance 3.5, 28 steps")
    assert len(levels_of(by_size, steps)) == steps + 1


def test_guidance_and_steps_are_crossed_where_a_model_is_mostly_used():
    settings = list(all_settings())
    assert len({str(setting) for setting in settings}) == len(settings)
    num_elsewhere = sum(len(guidances) for *_, guidances in AT_USUAL_STEPS)
    num_names = len({setting.model.name for setting in settings})
    assert num_names == len(CROSSED) * len(GUIDANCES) + num_elsewhere
    for _, _, schedule in CROSSED:
        found = [(s.num_steps, s.guidance) for s in settings if s.schedule == schedule]
        assert {(n, g) for n in STEPS for g in GUIDANCES} <= set(found)
    assert {s.num_steps for s in settings if s.schedule == "even"} == {28}


def test_halves_have_no_prompt_in_common():
    choosing, reporting = (HALVES[name] for name in ("choosing", "reporting"))
    assert choosing == 0 and MOST_PICTURES["choosing"] == reporting
    prompts, noise = begun(range(reporting, reporting + MOST_PICTURES["reporting"]), (2, 3))
    counts = prompts.bincount(minlength=NUM_PICTURES)
    assert not counts[:reporting].any() and set(counts[reporting:].tolist()) == {3}
    assert len(torch.unique(noise, dim=0)) == len(prompts)


def test_pictures_begin_alike_however_many_are_drawn():
    few, many = begun(range(30, 64), (2, 3)), begun(range(30, 100), (2, 3))
    for first, all_of_them in zip(few, many, strict=True):
        assert torch.equal(first, all_of_them[: len(first)])


def test_a_row_tells_of_its_worst_pictures(tmp_path):
    assert (ROW.mean_db, ROW.worst_db) == (40.0, 30.0)
    assert ROW.tenth_percentile_db == pytest.approx(32.0)
    assert replace(ROW, psnr_db=(35.0,)).tenth_percentile_db == 35.0
    path = tmp_path / "settings.jsonl"
    append_setting_row(path, ROW)
    (kept,) = read_setting_rows(path)
    assert kept.key == ROW.key and list(kept.psnr_db) == list(ROW.psnr_db)
    for changes in ({"half": "choosing"}, {"options": "[1]"}, {"psnr_db": (30.0,)}):
        assert replace(ROW, **changes).key != ROW.key


def test_a_preset_that_was_changed_is_another_contender():
    found = {contender.name: contender for contender in all_contenders()}
    assert len(found) == len(list(all_contenders()))
    assert {"uncached", 'ours "balanced"', "fewer steps 0.5"} <= set(found)
    assert "cache-dit mask fast order 1" in found and "diffusers MagCache 0.06" in found
    options = [ours("x", {"error_tolerance": t}).options for t in (0.1, 0.2)]
    assert options[0] != options[1] and options[0]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--settings", "no such"],
        ["--only", "no such"],
        ["--pictures", "97"],
        ["--half", "choosing", "--pictures", "33"],
    ],
)
def test_wrong_arguments_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(wrong)
    assert "error:" in capsys.readouterr().err


def test_a_quick_run_has_both_models_and_all_camps():
    quick, whole = parse_arguments(["--quick"]), parse_arguments([])
    assert {s.model_name for s in quick.settings} == {"flux-scenes", "wan-clips"}
    assert {c.camp for c in quick.contenders} == {c.camp for c in whole.contenders}
    assert len(quick.settings) * len(quick.contenders) * quick.num_pictures < 400


@pytest.mark.e2e
def test_fewer_steps_are_by_the_solver_of_the_setting(tmp_path):
    setting = setting_named("flux-scenes, DPM++ 2M, shift by size, guidance 3.5, 28 steps")
    artist = artist_for(setting.model, 1, 1, tmp_path)
    (fewer,) = [c for c in all_contenders() if c.name == "fewer steps 0.5"]
    drawn = fewer.draw(artist, 4)
    wanted = by_solver(artist, setting.model.solver(), 2, 4)
    assert drawn.share == 0.5 and torch.equal(drawn.pictures, wanted.pictures)


def test_a_mask_to_the_last_computes_one_in_so_many_steps_and_both_ends():
    assert to_the_last(4, 9) == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert to_the_last(4, 8) == (1, 0, 0, 1, 0, 0, 0, 1)
    assert to_the_last(3, 5) == (1, 1, 0, 0, 1)
    assert to_the_last(3, 8, num_first=3) == (1, 1, 1, 0, 1, 0, 0, 1)
    assert all_but_every(4, 9) == (1, 1, 1, 0, 1, 1, 1, 0, 1)


@pytest.mark.e2e
def test_the_uncached_model_is_drawn_in_one_step_more_and_less(tmp_path):
    setting = setting_named("flux-scenes, DPM++ 2M, shift by size, guidance 3.5, 28 steps")
    artist = artist_for(setting.model, 1, 1, tmp_path)
    found = {contender.name: contender for contender in all_contenders()}
    shares = [found[name].draw(artist, 4).share for name in ("one step less", "one step more")]
    assert shares == [0.75, 1.25]


@pytest.mark.e2e
def test_a_run_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(contenders, "SHARES_OF_STEPS", (0.5, 0.25))
    text = "flux-scenes, shift 3, guidance 1, 20"
    where = ["--settings", text, "--pictures", "1", "--out", str(tmp_path)]
    measure_settings.main([*where, "--only", "fewer steps 0.5"])
    assert capsys.readouterr().out.count("fewer steps 0.5: share 0.500") == 1
    measure_settings.main([*where, "--only", "fewer steps"])
    out = capsys.readouterr().out
    assert "draws" not in out and "fewer steps 0.5" not in out and "0.25: share 0.250" in out
    rows = read_setting_rows(tmp_path / "settings.jsonl")
    assert [row.contender for row in rows] == ["fewer steps 0.5", "fewer steps 0.25"]
    assert {row.half for row in rows} == {"reporting"} and all("torch" in r.machine for r in rows)
