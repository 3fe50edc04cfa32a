"""Pictures of any kind as arrays, and how near two of them are."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dit_cachegraph.exc import InvalidConfig

Array = npt.NDArray[np.float64]

# Of the window that SSIM was published with: a Gaussian of 1.5 pixels, cut at 11.
SSIM_WINDOW_PIXELS, SSIM_SIGMA_PIXELS = 11, 1.5
SSIM_STEADY = (0.01, 0.03)  # K1 and K2, as shares of the range.
_RETURNS = (
    "returns pictures: a tensor, an array, a picture of PIL or a list of them, such as "
    "`pipe(...).images`"
)


def as_array(drawn: object) -> Array:
    """What a run drew, float64: a tensor, an array, a picture of PIL, or a sequence of them.

    Raises:
        InvalidConfig: it is none of these, or there is nothing in it.
    """
    array = _numbers(drawn)
    if not array.size:
        raise InvalidConfig(f"a run of calibrate {_RETURNS}; got nothing in {drawn!r}")
    return array


def _numbers(drawn: object) -> Array:
    if isinstance(drawn, Tensor):
        on_host = drawn.detach().cpu()
        # NumPy has no bfloat16.
        return _numbers((on_host.float() if on_host.is_floating_point() else on_host).numpy())
    if isinstance(drawn, Sequence) and not isinstance(drawn, str | bytes):
        return np.stack([_numbers(one) for one in drawn]) if drawn else np.empty(0)
    array = np.asarray(drawn)
    if array.dtype.kind not in "biuf":
        raise InvalidConfig(f"a run of calibrate {_RETURNS}; got {type(drawn).__name__}")
    return array.astype(np.float64) / (255 if array.dtype == np.uint8 else 1)


def psnr_db(drawn: Array, reference: Array) -> float:
    """-10 log10 of the mean squared error as a share of the reference's range, squared; the range
    is 1 for pictures in [0, 1]. Infinite where they are equal.

    Raises:
        ValueError: their shapes differ.
    """
    if drawn.shape != reference.shape:
        raise ValueError(f"pictures of {drawn.shape} and {reference.shape} can't be compared")
    error = float(np.square(drawn - reference).mean())
    return float("inf") if error == 0 else float(20 * np.log10(_range_of(reference) / error**0.5))


def ssim(drawn: Array, reference: Array) -> float:
    """Structural similarity with the window of its authors, the mean over places, channels and
    frames; 1 where they are equal. Pictures lie in the last two dimensions, or in the two before
    the last where that has 1, 3 or 4 channels.

    Raises:
        ValueError: their shapes differ, or they are smaller than the window.
    """
    if drawn.shape != reference.shape:
        raise ValueError(f"pictures of {drawn.shape} and {reference.shape} can't be compared")
    a, b = _planes(drawn), _planes(reference)
    if a.shape[-1] < SSIM_WINDOW_PIXELS or a.shape[-2] < SSIM_WINDOW_PIXELS:
        raise ValueError(
            f"SSIM looks at windows of {SSIM_WINDOW_PIXELS} x {SSIM_WINDOW_PIXELS} pixels, and "
            f"pictures of {drawn.shape} have {a.shape[-2]} x {a.shape[-1]}"
        )
    mean_a, mean_b = _blurred(a), _blurred(b)
    of_a, of_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    of_both = _blurred(a * b) - mean_a * mean_b
    c1, c2 = ((k * _range_of(reference)) ** 2 for k in SSIM_STEADY)
    alike = (2 * mean_a * mean_b + c1) * (2 * of_both + c2)
    return float((alike / ((mean_a**2 + mean_b**2 + c1) * (of_a + of_b + c2))).mean())


def _planes(pictures: Array) -> Tensor:
    """[N, 1, H, W]"""
    if pictures.ndim < 2:  # noqa: PLR2004
        raise ValueError(f"SSIM needs pictures with two sides, got {pictures.shape}")
    if pictures.ndim > 2 and pictures.shape[-1] in (1, 3, 4):  # noqa: PLR2004
        pictures = np.moveaxis(pictures, -1, 0)
    return torch.from_numpy(pictures.reshape(-1, 1, *pictures.shape[-2:]))


def _blurred(planes: Tensor) -> Tensor:
    """By the Gaussian window, where all of it lies within the picture."""
    half = SSIM_WINDOW_PIXELS // 2
    offsets = torch.arange(-half, half + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA_PIXELS) ** 2)
    weights = (weights / weights.sum()).reshape(1, 1, -1, 1)
    blurred = torch.nn.functional.conv2d(planes, weights)
    return torch.nn.functional.conv2d(blurred, weights.mT)


def _range_of(reference: Array) -> float:
    low, high = float(reference.min()), float(reference.max())
    return 1.0 if low >= 0 and high <= 1 else max(high - low, 1e-12)
