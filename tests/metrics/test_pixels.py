"""MSE, PSNR and SSIM: the libraries' own values, closed forms, and what is refused."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from dit_cachegraph.metrics import CannotMeasure
from dit_cachegraph.metrics.pixels import (
    mse,
    mse_of_frames,
    psnr,
    psnr_db,
    psnr_of_frames,
    ssim,
    ssim_of_frames,
)


def noise(seed, shape=(64, 48, 3), dtype=np.uint8):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(0, info.max, shape, dtype, endpoint=True)


def flat(value, shape=(32, 32, 3), dtype=np.uint8):
    return np.full(shape, value, dtype)


def test_two_unrelated_noise_pictures_have_7_8_db():
    # Two independent uniform values of 0..255 differ by (256^2 - 1) / 6 in the mean square.
    expected = 10 * math.log10(255**2 * 6 / (256**2 - 1))
    assert psnr(noise(0, (256, 256, 3)), noise(1, (256, 256, 3))) == pytest.approx(
        expected, abs=0.05
    )
    assert round(expected, 1) == 7.7 or round(expected, 1) == 7.8


def test_unsigned_differences_do_not_wrap():
    # In uint8, 5 - 250 is 11.
    assert mse(flat(250), flat(5)) == 245**2
    assert mse(flat(5), flat(250)) == 245**2
    assert psnr(flat(5), flat(250)) == pytest.approx(20 * math.log10(255 / 245))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_are_the_librarys_own(dtype):
    reference, candidate = noise(0, dtype=dtype), noise(1, dtype=dtype)
    # scikit-image is right with unsigned integers as long as it is told the range.
    data_range = np.iinfo(dtype).max
    assert mse(reference, candidate) == mean_squared_error(reference, candidate)
    assert psnr(reference, candidate) == peak_signal_noise_ratio(
        reference, candidate, data_range=data_range
    )
    expected = structural_similarity(
        reference,
        candidate,
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(reference, candidate) == pytest.approx(expected, rel=1e-12)


def test_ssim_of_flat_pictures_is_its_first_factor():
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 130 + c1) / (100**2 + 130**2 + c1)
    assert ssim(flat(100), flat(130)) == pytest.approx(expected, rel=1e-9)
    assert ssim(noise(0), noise(0)) == 1.0


def test_equal_pictures_are_infinitely_good():
    assert psnr(noise(0), noise(0)) == math.inf
    assert mse(noise(0), noise(0)) == 0.0


def test_a_clip_is_one_picture_of_all_its_values():
    pairs = [(noise(i), noise(i + 10)) for i in range(3)]
    whole = [np.stack(frames) for frames in zip(*pairs, strict=True)]
    assert mse_of_frames(pairs) == pytest.approx(mean_squared_error(*whole), rel=1e-12)
    assert psnr_of_frames(pairs) == pytest.approx(
        peak_signal_noise_ratio(*whole, data_range=255), rel=1e-12
    )
    assert ssim_of_frames(pairs) == pytest.approx(np.mean([ssim(*pair) for pair in pairs]))


def test_one_equal_frame_does_not_make_a_clip_infinitely_good():
    pairs = [(flat(10), flat(10)), (flat(10), flat(20))]
    assert psnr_of_frames(pairs) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr_of_frames(pairs[:1]) == math.inf


def test_psnr_of_a_batch_is_its_formula():
    pictures = torch.zeros(2, 3, 4, 4)
    references = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    values = psnr_db(pictures, references)
    assert values[0].item() == pytest.approx(20.0, abs=1e-5)
    assert values[1].item() == math.inf


FLOAT = noise(0).astype(np.float32) / 255


@pytest.mark.parametrize(
    ("reference", "candidate", "says"),
    [
        (noise(0), noise(0, (64, 48, 1)), "must be alike"),
        (noise(0), noise(0, (48, 64, 3)), "must be alike"),
        (noise(0), noise(0, dtype=np.uint16), "must be alike"),
        (noise(0), FLOAT, "must be alike"),
        (FLOAT * 255, FLOAT * 255, r"must be in \[0, 1\], got 0 to 255"),
        (FLOAT, FLOAT * 2 - 1, r"must be in \[0, 1\], got -1 to 1"),
        (FLOAT, FLOAT * np.nan, "got nan to nan"),
        (noise(0).astype(np.int32), noise(0).astype(np.int32), "got int32"),
    ],
    ids=["channels", "size", "bits", "float", "float255", "signed", "nan", "int32"],
)
@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_what_does_not_match_is_an_error(metric, reference, candidate, says):
    with pytest.raises(CannotMeasure, match=says):
        metric(reference, candidate)


def test_ssim_needs_its_window():
    assert ssim(noise(0, (11, 11, 3)), noise(1, (11, 11, 3))) < 1
    with pytest.raises(CannotMeasure, match="11 x 11 pixels and the picture has 16 x 10"):
        ssim(noise(0, (10, 16, 3)), noise(1, (10, 16, 3)))
