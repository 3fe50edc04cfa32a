"""What a calibration is to find, and when it is found."""

from collections.abc import Sequence
from dataclasses import dataclass

from dit_cachegraph.calibration.points import Point, Quality
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_number, check_share


@dataclass(frozen=True, slots=True)
class Goal:
    """At least this quality, in dB or as an SSIM, or at most this share of the block work."""

    psnr_db: float | None = None
    ssim: float | None = None
    compute_budget: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.psnr_db, self.ssim, self.compute_budget) if v is not None]
        if len(given) != 1:
            raise InvalidConfig(
                "calibrate takes one of target_psnr, target_ssim and compute_budget"
            )
        check_number("a goal of calibrate", given[0])
        for name, share in (("target_ssim", self.ssim), ("compute_budget", self.compute_budget)):
            check_share(name, share, none_is_ok=True)

    @property
    def is_quality(self) -> bool:
        """True where less work is better and quality is the bound."""
        return self.compute_budget is None

    def holds(self, point: Point) -> bool:
        if self.compute_budget is not None:
            return point.share <= self.compute_budget
        if self.ssim is not None:
            return point.ssim is not None and point.ssim >= self.ssim
        assert self.psnr_db is not None
        return point.psnr_db >= self.psnr_db

    @property
    def quality_name(self) -> Quality:
        """What is compared: SSIM if that is the goal, else PSNR."""
        return "psnr_db" if self.ssim is None else "ssim"

    def quality_of(self, point: Point) -> float:
        return point.quality(self.quality_name)

    def best(self, points: Sequence[Point]) -> Point:
        """Of those that hold the cheapest, or the best; the nearest where none does."""
        good = [point for point in points if self.holds(point)]
        if self.is_quality:
            if good:
                return min(good, key=lambda p: (p.share, -self.quality_of(p)))
            return max(points, key=self.quality_of)
        if good:
            return max(good, key=lambda p: (p.psnr_db, -p.share))
        return min(points, key=lambda p: p.share)

    def __str__(self) -> str:
        if self.psnr_db is not None:
            return f"at least {self.psnr_db:g} dB"
        if self.ssim is not None:
            return f"an SSIM of at least {self.ssim:g}"
        return f"at most {self.compute_budget:.0%} of the block work"
