"""Metrics of files through the command line: what is paired, what is printed, what is refused."""

import json
import math

import imageio.v3 as iio
import numpy as np
import pytest

from dit_cachegraph import cli
from dit_cachegraph.metrics import CannotMeasure, judge, measure
from dit_cachegraph.metrics.media import read_items
from dit_cachegraph.metrics.pixels import psnr, psnr_of_frames, ssim


def picture(seed, size=(32, 48), channels=3):
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def clip(seed, num_frames=6):
    """Smooth, so that a codec keeps it: a gradient that moves."""
    rows, columns = np.mgrid[0:64, 0:64]
    frames = [(rows * 2 + columns + 8 * t + 40 * seed) % 256 for t in range(num_frames)]
    return np.stack([np.stack([f, 255 - f, f // 2], -1) for f in frames]).astype(np.uint8)


def write_clip(path, frames):
    iio.imwrite(path, frames, plugin="pyav", codec="libx264", fps=8)


def folder_of(path, pictures, ending=".png"):
    path.mkdir()
    for name, pixels in pictures.items():
        iio.imwrite(path / f"{name}{ending}", pixels)
    return path


def run(capsys, *arguments):
    """Exit code, what was printed, and the sentence of a refusal."""
    code = cli.main(["metrics", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def folders(tmp_path):
    reference = folder_of(tmp_path / "reference", {"a": picture(0), "b": picture(1)})
    near = {"a": picture(0) // 2, "b": picture(1)}
    return reference, folder_of(tmp_path / "near", near)


def test_a_picture_is_measured_as_its_array(tmp_path, capsys):
    folder = folder_of(tmp_path / "p", {"one": picture(0), "two": picture(1)})
    code, out, error = run(capsys, "psnr", folder / "one.png", folder / "two.png", "--json")
    assert (code, error) == (0, "")
    (row,) = json.loads(out)
    assert row["value"] == psnr(picture(0), picture(1))
    assert row["items"] == {"one": row["value"]}


def test_paths_may_be_texts(tmp_path):
    folder = folder_of(tmp_path / "p", {"one": picture(0), "two": picture(1)})
    one, two = str(folder / "one.png"), str(folder / "two.png")
    assert measure("psnr", one, [two]) == measure("psnr", folder / "one.png", [folder / "two.png"])
    for path in (two, folder / "two.png"):
        with pytest.raises(CannotMeasure, match=r"the one path .*two\.png: put it into a list"):
            measure("psnr", one, path)


def test_a_folder_is_the_mean_of_its_files(folders, capsys):
    code, out, _ = run(capsys, "ssim", *folders, "--json")
    (row,) = json.loads(out)
    expected = ssim(picture(0), picture(0) // 2)
    assert code == 0
    assert row["items"] == {"a": expected, "b": 1.0}
    assert row["value"] == pytest.approx((1 + expected) / 2)


def test_an_equal_file_is_counted_and_does_not_hide_the_others(folders, capsys):
    expected = psnr(picture(0), picture(0) // 2)
    (score,) = measure("psnr", folders[0], [folders[1]])
    assert (score.value, score.num_equal) == (expected, 1)
    _, out, _ = run(capsys, "psnr", *folders)
    header, line = out.splitlines()
    assert header.split() == ["psnr", "mean", "worst", "files", "equal"]
    assert line.split() == [str(folders[1]), f"{expected:.4f}", f"{expected:.4f}", "2", "1"]


def test_infinity_is_json_that_others_read(folders, capsys):
    _, out, _ = run(capsys, "psnr", *folders, "--json")
    (row,) = json.loads(out, parse_constant=pytest.fail)
    expected = psnr(picture(0), picture(0) // 2)
    assert row["items"] == {"a": expected, "b": "inf"}
    assert (row["value"], row["num_equal"]) == (expected, 1)


def test_where_all_are_equal_the_mean_is_infinite(folders, capsys):
    for path, num_files in ((folders[0], 2), (folders[0] / "a.png", 1)):
        code, out, _ = run(capsys, "psnr", path, path)
        count = str(num_files)
        assert code == 0
        assert out.splitlines()[1].split() == [str(path), "inf", "inf", count, count]
        _, out, _ = run(capsys, "psnr", path, path, "--json")
        (row,) = json.loads(out, parse_constant=pytest.fail)
        assert (row["value"], row["num_equal"]) == ("inf", num_files)
        assert float(row["value"]) == math.inf


def test_other_metrics_count_equal_files_as_any(folders, capsys):
    (score,) = measure("mse", folders[0], [folders[1]])
    assert (score.num_equal, score.items["b"]) == (0, 0.0)
    _, out, _ = run(capsys, "mse", *folders, "--json")
    assert "num_equal" not in json.loads(out)[0]
    # An infinite distance is no sign that files are equal, and stays in the mean.
    values = iter((1.0, math.inf))
    (score,) = judge.by_pairs("lpips", lambda _pairs: next(values), folders[0], [folders[1]])
    assert (score.num_equal, score.value) == (0, math.inf)


def test_several_candidates_are_a_line_each(folders, capsys):
    reference, near = folders
    code, out, _ = run(capsys, "mse", reference, near, reference)
    header, first, second = out.splitlines()
    assert code == 0
    assert header.split() == ["mse", "mean", "worst", "files"]
    mean = np.mean((picture(0).astype(float) - picture(0) // 2) ** 2) / 2
    assert first.split() == [str(near), f"{mean:.4f}", f"{2 * mean:.4f}", "2"]
    assert second.split() == [str(reference), "0.0000", "0.0000", "2"]


def test_the_worst_is_the_lowest_where_higher_is_better(folders):
    (score,) = measure("psnr", folders[0], [folders[1]])
    assert score.worst == score.items["a"] < score.items["b"]
    (score,) = measure("mse", folders[0], [folders[1]])
    assert score.worst == score.items["a"] > score.items["b"]


def test_gray_pictures_and_other_endings(tmp_path):
    gray = picture(0, channels=1)
    one = folder_of(tmp_path / "png", {"x": gray})
    two = folder_of(tmp_path / "bmp", {"x": gray // 2}, ".bmp")
    (one / "notes.txt").write_text("passed over")
    (score,) = measure("psnr", one, [two])
    assert score.value == psnr(gray, gray // 2)


def test_clips_are_measured_frame_by_frame(tmp_path):
    write_clip(tmp_path / "one.mp4", clip(0))
    write_clip(tmp_path / "two.mp4", clip(1))
    decoded = [iio.imread(tmp_path / f"{name}.mp4", plugin="pyav") for name in ("one", "two")]
    assert decoded[0].shape == (6, 64, 64, 3)
    (score,) = measure("psnr", tmp_path / "one.mp4", [tmp_path / "two.mp4"])
    assert score.value == psnr_of_frames(zip(*decoded, strict=True))
    assert 3 < score.value < 20


@pytest.mark.slow
def test_a_folder_of_clips(tmp_path):
    for folder, shift in (("one", 0), ("two", 1)):
        (tmp_path / folder).mkdir()
        for seed in range(2):
            write_clip(tmp_path / folder / f"clip{seed}.mp4", clip(seed + shift))
    (score,) = measure("ssim", tmp_path / "one", [tmp_path / "two"])
    assert list(score.items) == ["clip0", "clip1"]
    assert score.value < 1


def test_clips_of_another_length_are_refused(tmp_path, refused):
    write_clip(tmp_path / "one.mp4", clip(0, 6))
    write_clip(tmp_path / "two.mp4", clip(0, 4))
    error = refused("psnr", tmp_path / "one.mp4", tmp_path / "two.mp4")
    assert "two.mp4 ends after 4 frames" in error


@pytest.mark.parametrize("metric", ["psnr", "ssim", "mse"])
def test_another_size_is_refused(metric, tmp_path, refused):
    folder = folder_of(tmp_path / "p", {"one": picture(0), "two": picture(0, (48, 32))})
    error = refused(metric, folder / "one.png", folder / "two.png")
    assert "48 x 32 with 3 channels of uint8" in error and "32 x 48 with" in error


def test_other_bits_and_other_channels_are_refused(tmp_path, refused):
    folder = folder_of(tmp_path / "p", {"gray": picture(0, channels=1), "rgb": picture(0)})
    iio.imwrite(folder / "deep.png", picture(0, channels=1).astype(np.uint16) * 257)
    gray = folder / "gray.png"
    assert "of uint16: they must be alike" in refused("psnr", gray, folder / "deep.png")
    assert "3 channels" in refused("psnr", gray, folder / "rgb.png")


def test_what_has_no_partner_is_refused(tmp_path, refused):
    one = folder_of(tmp_path / "one", {"a": picture(0), "b": picture(1)})
    two = folder_of(tmp_path / "two", {"a": picture(0)})
    three = folder_of(tmp_path / "three", {"a": picture(0), "c": picture(1)})
    error = refused("psnr", one, two)
    assert "one holds 2" in error and "two 1" in error and "b is in one of them alone" in error
    assert "b is in one of them alone" in refused("psnr", one, three)
    assert "one is a file and one is a folder" in refused("psnr", one, two / "a.png")


def test_what_is_no_picture_is_refused(tmp_path, refused):
    folder = folder_of(tmp_path / "p", {"a": picture(0)})
    (folder / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    a = folder / "a.png"
    assert "nowhere does not exist" in refused("psnr", tmp_path / "nowhere", a)
    assert "nowhere.png does not exist" in refused("psnr", a, tmp_path / "nowhere.png")
    assert "broken.png cannot be read" in refused("psnr", a, folder / "broken.png")
    assert "holds no pictures" in refused("psnr", tmp_path / "empty", tmp_path / "empty")
    (folder / "x.txt").write_text("x")
    assert "by its ending" in refused("psnr", a, folder / "x.txt")


def test_mixed_folders_and_twins_are_refused(tmp_path):
    folder = folder_of(tmp_path / "p", {"a": picture(0)})
    iio.imwrite(folder / "a.bmp", picture(0))
    with pytest.raises(CannotMeasure, match="2 files named a"):
        read_items(folder)
    (folder / "a.bmp").unlink()
    write_clip(folder / "b.mp4", clip(0))
    with pytest.raises(CannotMeasure, match="1 pictures and 1 clips"):
        read_items(folder)
    with pytest.raises(CannotMeasure, match=r"a\.png is pictures and .*b\.mp4 is clips"):
        measure("psnr", folder / "a.png", [folder / "b.mp4"])


def test_an_unknown_metric_is_refused(tmp_path, capsys):
    with pytest.raises(CannotMeasure, match="known are psnr, ssim"):
        measure("pnsr", tmp_path, [tmp_path])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["metrics", "pnsr", "a", "b"])
    assert stopped.value.code == 2
    assert "invalid choice: 'pnsr'" in capsys.readouterr().err
