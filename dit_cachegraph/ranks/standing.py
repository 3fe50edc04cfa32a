"""What a rank tells of itself before a decision, in a few numbers: whether all decide alike.

    rank | step | settings | images | usable      two numbers a digest, 24 bits each

A decision goes by what was read, which all ranks gather, and by what each holds. So where all of
this is equal, all decide alike, without a word more; where anything differs, all compute.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

_RANK, _STEP, _SETTINGS, _IMAGES, _USABLE = 0, 1, 2, 4, 6
HEADER_SIZE = 8


class Standing(NamedTuple):
    """What one rank goes by, as values whose `repr` says all of them. `settings`: of the step;
    `images`: those under way that it may be of; `usable`: of each of them why nothing that is held
    can be used, None where it can; `step`: the index of the step, of the likeliest."""

    settings: object
    images: object
    usable: object
    step: int


def digest(value: object) -> int:
    """48 bits that values with the same `repr` share, in every process."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=6).digest(), "big")


def as_numbers(value: object) -> list[float]:
    """Its digest, as two numbers that float32 holds."""
    return list(map(float, divmod(digest(value), 1 << 24)))


def header_of(rank: int, standing: Standing) -> list[float]:
    """What is gathered of a standing."""
    told = [float(rank), float(standing.step)]
    for value in (standing.settings, standing.images, standing.usable):
        told += as_numbers(value)
    return told


def why_apart(headers: Tensor) -> str | None:
    """Why the ranks with these headers, [ranks, HEADER_SIZE] on the host, may not decide alike; the
    same sentence on each. None where they do."""
    first, *others = headers.tolist()
    for other in others:
        if found := _difference(first, other):
            return f"ranks {first[_RANK]:.0f} and {other[_RANK]:.0f} {found}"
    return None


def _difference(a: Sequence[float], b: Sequence[float]) -> str | None:
    if a[_SETTINGS:_IMAGES] != b[_SETTINGS:_IMAGES]:
        return "have other settings"
    if a[_STEP] != b[_STEP]:
        return f"are at step {a[_STEP]:.0f} and step {b[_STEP]:.0f} of their images"
    if a[_IMAGES:_USABLE] != b[_IMAGES:_USABLE]:
        return "saw other steps before this one"
    return "hold other state" if a[_USABLE:] != b[_USABLE:] else None
