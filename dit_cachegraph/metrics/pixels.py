"""MSE, PSNR and SSIM of scikit-image, with the range of values always known.

Arrays are uint8 or uint16, with their whole range, or floating point in [0, 1]; differences are
taken in float64, never in the unsigned type, where they would wrap.
"""

import math
import statistics
from collections.abc import Iterable

import numpy as np
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from dit_cachegraph.metrics.exc import CannotMeasure

# Of the window that SSIM was published with: a Gaussian of 1.5 pixels, cut at 11.
SSIM_WINDOW_PIXELS = 11

Pair = tuple[np.ndarray, np.ndarray]


def mse(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean squared error over all values, in the arrays' own units."""
    _range_of_both(reference, candidate)
    return float(mean_squared_error(np.float64(reference), np.float64(candidate)))


def psnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all values, in dB; infinite where they are equal."""
    data_range = _range_of_both(reference, candidate)
    with np.errstate(divide="ignore"):
        return float(
            peak_signal_noise_ratio(
                np.float64(reference), np.float64(candidate), data_range=data_range
            )
        )


def ssim(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Structural similarity of two pictures [H, W, C], by the settings of its authors: a Gaussian
    window, and the mean over channels and places.

    Raises:
        CannotMeasure: also where a side is smaller than the window.
    """
    data_range = _range_of_both(reference, candidate)
    if min(reference.shape[:2]) < SSIM_WINDOW_PIXELS:
        raise CannotMeasure(
            f"ssim looks at windows of {SSIM_WINDOW_PIXELS} x {SSIM_WINDOW_PIXELS} pixels and the "
            f"picture has {reference.shape[1]} x {reference.shape[0]}"
        )
    return float(
        structural_similarity(
            np.float64(reference),
            np.float64(candidate),
            data_range=data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def mse_of_frames(pairs: Iterable[Pair]) -> float:
    """Over all values of all frames."""
    return statistics.fmean(mse(*pair) for pair in pairs)


def psnr_of_frames(pairs: Iterable[Pair]) -> float:
    """Over all values of all frames: one equal frame doesn't make a clip infinitely good."""
    errors, data_range = [], 1.0
    for pair in pairs:
        data_range = _range_of_both(*pair)
        errors.append(mse(*pair))
    error = statistics.fmean(errors)
    return 10 * math.log10(data_range**2 / error) if error else math.inf


def ssim_of_frames(pairs: Iterable[Pair]) -> float:
    """The mean over frames."""
    return statistics.fmean(ssim(*pair) for pair in pairs)


def psnr_db(pictures: Tensor, references: Tensor) -> Tensor:
    """[B] in float64, for pictures [B, ...] in [0, 1]."""
    pairs = zip(references.numpy(), pictures.numpy(), strict=True)
    return torch.tensor([psnr(*pair) for pair in pairs], dtype=torch.float64)


def _range_of_both(reference: np.ndarray, candidate: np.ndarray) -> float:
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        raise CannotMeasure(
            f"the reference is {reference.dtype} {reference.shape} and the candidate "
            f"{candidate.dtype} {candidate.shape}: they must be alike"
        )
    _check_values(reference)
    return _check_values(candidate)


def _check_values(array: np.ndarray) -> float:
    if array.dtype in (np.uint8, np.uint16):
        return float(np.iinfo(array.dtype).max)
    if not np.issubdtype(array.dtype, np.floating):
        raise CannotMeasure(
            f"values must be uint8, uint16 or floating point in [0, 1], got {array.dtype}"
        )
    low, high = array.min(), array.max()
    # Written so that a NaN is refused as well.
    if not (low >= 0 and high <= 1):
        raise CannotMeasure(
            f"floating point values must be in [0, 1], got {low:.3g} to {high:.3g}: scale them, or "
            "clip what a decoder overshot"
        )
    return 1.0
