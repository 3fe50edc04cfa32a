"""Pictures of any kind as arrays, and how near two of them are."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


def as_array(drawn: object) -> Array:
    """What a run drew, float64: a tensor, an array, a picture of PIL, or a sequence of them."""
    if isinstance(drawn, Tensor):
        return np.asarray(drawn.detach().float().cpu().numpy(), np.float64)
    if isinstance(drawn, Sequence):
        return np.stack([as_array(one) for one in drawn])
    array = np.asarray(drawn)
    if array.dtype == np.uint8:
        return array.astype(np.float64) / 255
    return array.astype(np.float64)


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


def _range_of(reference: Array) -> float:
    low, high = float(reference.min()), float(reference.max())
    return 1.0 if low >= 0 and high <= 1 else max(high - low, 1e-12)
