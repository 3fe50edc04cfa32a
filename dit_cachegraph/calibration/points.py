"""What a search tries: candidates with what was measured of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Quality = Literal["psnr_db", "ssim"]


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate over the `num_inputs` runs that it was tried on: the share of block work that
    ran, the mean PSNR in dB and SSIM (where that is the goal) against the uncached pictures, and
    all options of its rule and predictor."""

    share: float
    psnr_db: float
    ssim: float | None
    num_inputs: int
    settings: Mapping[str, object]

    def quality(self, name: Quality) -> float:
        """In dB, or the SSIM."""
        return self.ssim if name == "ssim" and self.ssim is not None else self.psnr_db

    def __str__(self) -> str:
        also = "" if self.ssim is None else f", SSIM {self.ssim:.3f}"
        return f"{self.psnr_db:.1f} dB{also} at {self.share:.0%} of the block work"


def unbeaten(points: Sequence[Point], quality: Quality) -> tuple[Point, ...]:
    """Those that no other beats in work and quality, from the cheapest on."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.share, -p.quality(quality))):
        if not found or point.quality(quality) > found[-1].quality(quality):
            found.append(point)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Search:
    """All that was tried, the best of it, and how that did where it was not searched; `quality` is
    what they are compared by, `promise` what was asked for."""

    best: Point
    holdout: Point
    tried: tuple[Point, ...]
    quality: Quality
    promise: str

    @property
    def frontier(self) -> tuple[Point, ...]:
        """Of those that were tried on most inputs, the ones that no other beats in work and
        quality, from the cheapest on."""
        most = max(point.num_inputs for point in self.tried)
        return unbeaten([p for p in self.tried if p.num_inputs == most], self.quality)
