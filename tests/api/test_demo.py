"""The demo: what it writes, what it says, and that the shipped model draws what it is told."""

import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.train.scenes import SCENES
from bench.train.strokes import COLORS
from dit_cachegraph import cli
from dit_cachegraph.demo import needs
from dit_cachegraph.demo.flux_scenes import draw, embed, load_pipeline, shipped_prompts
from dit_cachegraph.demo.pictures import DPI, grid_inches
from dit_cachegraph.demo.run import DemoResult, DemoSettings, run
from dit_cachegraph.demo.write import table, write

pytestmark = pytest.mark.e2e

NUM_PROMPTS, NUM_STEPS = 3, 12
NUM_CALLS = 2 * NUM_STEPS  # guidance makes two of a step


@pytest.fixture(scope="module")
def result() -> DemoResult:
    return run(
        DemoSettings(
            num_prompts=NUM_PROMPTS,
            num_steps=NUM_STEPS,
            num_repetitions=2,
            inner_backend="eager",
            preset="fast",
        )
    )


def drawn_eagerly(prompts, num_steps):
    guidance = DemoSettings().guidance
    pictures = draw(load_pipeline(), embed(prompts), num_steps=num_steps, guidance=guidance)
    return (pictures.clamp(-1, 1) + 1) / 2


def test_uncached_pictures_are_those_of_the_pipeline_alone(result):
    expected = drawn_eagerly(shipped_prompts()[:NUM_PROMPTS], NUM_STEPS)
    torch.testing.assert_close(result.uncached.pictures, expected, rtol=0, atol=1e-5)


def test_cached_pictures_are_near_the_uncached_ones(result):
    assert result.report.num_hits > 0
    assert len(result.steps) == NUM_CALLS
    psnr_db = result.psnr_db(result.cached)
    assert torch.isfinite(psnr_db).all()
    assert psnr_db.min() > 25
    hits = sum(step.hit for step in result.steps)
    assert result.share_of_blocks_run == pytest.approx(1 - hits / NUM_CALLS)


def test_the_rival_takes_as_many_steps_as_the_cache_computed(result):
    num_computed = NUM_CALLS - result.report.num_hits
    assert result.fewer.num_steps == round(num_computed / 2) < NUM_STEPS
    expected = drawn_eagerly(shipped_prompts()[:NUM_PROMPTS], result.fewer.num_steps)
    torch.testing.assert_close(result.fewer.pictures, expected, rtol=0, atol=1e-5)
    assert not torch.equal(result.fewer.pictures, result.uncached.pictures)


def test_every_step_is_called_and_timed(result):
    for contender in (result.uncached, result.cached, result.fewer):
        assert len(contender.run_seconds) == 2
        assert contender.median_seconds > 0


def test_files_are_pictures_of_their_size(result, tmp_path):
    grid, plot, text = write(result, tmp_path / "made" / "here")
    width, height = (round(inches * DPI) for inches in grid_inches(NUM_PROMPTS))
    shape = matplotlib.image.imread(grid).shape
    assert abs(shape[0] - height) <= 1 and abs(shape[1] - width) <= 1
    assert matplotlib.image.imread(plot).shape[:2] == (2 * 450, 900)  # one for each pass
    assert np.std(matplotlib.image.imread(grid)[..., :3]) > 0.05
    assert text.read_text(encoding="utf-8") == table(result)


def test_table_has_the_counts(result):
    cells = {
        row[0].strip(): [cell.strip() for cell in row[1:]]
        for row in (line.strip("|").split("|") for line in table(result).splitlines())
        if len(row) == 4
    }
    report, num_fewer = result.report, result.fewer.num_steps
    assert cells["calls of the model reused"] == ["", f"{report.num_hits} of {NUM_CALLS}", ""]
    assert cells["steps"] == [str(NUM_STEPS), str(NUM_STEPS), str(num_fewer)]
    shares = (1, result.share_of_blocks_run, num_fewer / NUM_STEPS)
    assert cells["block work run"] == [f"{100 * share:.0f} %" for share in shares]
    means = [result.psnr_db(c).mean() for c in (result.cached, result.fewer)]
    assert cells["PSNR, mean, dB"] == ["", *(f"{mean:.1f}" for mean in means)]


@pytest.mark.parametrize("num_prompts", [1, 8, 9, 32])
def test_grid_is_wide_enough_for_its_prompts(num_prompts):
    width, height = grid_inches(num_prompts)
    assert 4 < width < 18 and 2 < height < 15


def test_prompts_are_the_first_of_the_bench():
    assert shipped_prompts() == [SCENES.prompt(picks) for picks in SCENES.every_kind(32)]


def test_model_draws_the_colour_that_the_prompt_names():
    prompts = [f"a large plain {color} square at center on gray" for color in COLORS]
    middle = drawn_eagerly(prompts, 8)[:, :, 24:40, 24:40].mean((2, 3))
    nearest = torch.cdist(middle, torch.tensor(list(COLORS.values()))).argmin(1)
    num_right = (nearest == torch.arange(len(COLORS))).sum().item()
    assert num_right >= 7


def test_a_folder_of_its_name_is_no_package(monkeypatch, tmp_path):
    """As the `ray` that Ray makes in the temporary folder, to who starts a program there."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    missing = needs.what_is_missing(packages=("no_such_package", "torch"))
    assert missing is not None and missing.startswith("the demo needs no_such_package: run pip")


def test_missing_package_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["demo"]) == 2
    error = capsys.readouterr().err
    assert "tqdm" in error and 'pip install "dit_cachegraph[demo]"' in error
    assert error.count("\n") == 1


def test_missing_compiler_is_one_sentence(capsys):
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == f"error: {needs.NO_COMPILER}\n"


def test_a_file_in_the_place_of_its_folder_is_one_sentence(tmp_path, capsys):
    """And not an error after all is drawn."""
    file = tmp_path / "demo_out"
    file.touch()
    assert cli.main(["demo", "--out", str(file)]) == 2
    told = f"error: --out {file} is a file: give the name of a folder\n"
    assert capsys.readouterr().err == told


def test_a_folder_that_cant_be_made_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "demo_out"
    assert cli.main(["demo", "--out", str(folder), "--num-prompts", "1", "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {folder} can't be written to: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--num-prompts", "0"], ["--num-prompts", "33"]])
def test_bad_number_of_prompts_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", *arguments])
    assert stopped.value.code == 2
    assert "from 1 to 32" in capsys.readouterr().err
