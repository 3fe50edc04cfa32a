"""Few steps, image-to-image, two experts and unlike prompts in the quality bench."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality import harm
from bench.quality.draw import artist_for, by_ours
from bench.quality.overview import harm_table
from bench.quality.setting_rows import SettingRow, read_setting_rows
from bench.quality.unusual import EXPERTS_BOUNDARY, STRENGTHS, all_cases
from dit_cachegraph.policy.presets import PRESETS

CASES = {case.name: case for case in all_cases()}


def test_cases_have_names_of_their_own():
    assert len(CASES) == len(list(all_cases())) == 4 + len(STRENGTHS) + 3
    assert CASES["flux-scenes from a picture, strength 0.5"].num_steps == 14


@pytest.mark.e2e
def test_a_picture_with_noise_is_gone_on_with():
    """The last steps of the whole schedule, and nearer to the drawing with less noise over it."""
    drawn = {}
    for strength in (0.25, 0.75):
        case = CASES["flux-scenes from a picture, strength 0.5"]
        model = replace(case.model, strength=strength)
        pipe = model.load()
        drawn[strength] = model.draw(pipe, range(2), round(8 * strength))
        even = torch.arange(round(8 * strength), -1, -1) / 8
        assert torch.allclose(pipe.scheduler.sigmas, 3 * even / (1 + 2 * even), atol=1e-5)
    drawings, _ = model.recipe.world.draw(64, torch.Generator().manual_seed(6))
    wanted = (drawings[:2].clamp(-1, 1) + 1) / 2
    far = {strength: (pictures - wanted).square().mean() for strength, pictures in drawn.items()}
    assert far[0.25] < far[0.75]


@pytest.mark.e2e
def test_both_experts_are_cached_and_counted(tmp_path):
    model = CASES["wan-clips, two experts"].model
    pipe = model.load()
    assert pipe.transformer_2 is not None and pipe.transformer_2 is not pipe.transformer
    assert pipe.config.boundary_ratio == EXPERTS_BOUNDARY
    artist = artist_for(model, 1, 1, tmp_path)
    called = []
    for part in (artist.ours.transformer, artist.ours.transformer_2):
        part.register_forward_pre_hook(lambda part, _: called.append(part))
    whole = by_ours(artist, {"rule": "fixed", "compute_mask": (1,)}, 8)
    assert whole.share == 1 and len(set(called)) == 2
    assert torch.allclose(whole.pictures, artist.uncached(8), atol=1e-4)
    assert by_ours(artist, PRESETS["draft"], 8).share < 0.7


@pytest.mark.e2e
def test_rows_are_kept_and_not_measured_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harm, "NUM_PICTURES", 1)
    where = ["--cases", "shift 3, 4 steps", "--out", str(tmp_path)]
    harm.main(where)
    assert capsys.readouterr().out.count("4 steps, ") == 2 * len(PRESETS)
    harm.main(where)
    assert capsys.readouterr().out == ""
    rows = read_setting_rows(tmp_path / "harm.jsonl")
    # Nothing of the four steps is reused but by a draft.
    shares = {row.contender: row.share for row in rows if row.camp == "ours"}
    assert shares['ours "balanced"'] == 1 and shares['ours "draft"'] == 0.5
    with pytest.raises(SystemExit):
        harm.main(["--cases", "no such"])


def test_a_preset_that_was_changed_is_not_shown():
    options = repr(sorted(PRESETS["balanced"].items()))
    ours = SettingRow(
        "a case", "choosing", "v", 'ours "balanced"', "ours", options, 0.5, (40.0,), 1.0, "m"
    )
    fewer = replace(ours, contender='fewer steps beside "balanced"', options="", psnr_db=(35.0,))
    assert "| 0.50: 40.0 dB (35.0) |" in harm_table([fewer, ours])
    assert "| 0.50: equal |" in harm_table([fewer, replace(ours, psnr_db=(100.0,))])
    assert "40.0" not in harm_table([fewer, replace(ours, options="of before")])
