"""Fewer steps of the same solver: what a cache has to beat, at the work that it needs."""

from collections.abc import Callable
from dataclasses import dataclass

RunWithSteps = Callable[[object, int], object]


@dataclass(frozen=True, slots=True)
class FewerSteps:
    """What `num_steps` uncached steps in place of `of_steps` give on the holdout: the share of the
    block work, the mean PSNR in dB and SSIM (where that is the goal) against all steps."""

    num_steps: int
    of_steps: int
    psnr_db: float
    ssim: float | None

    @property
    def share(self) -> float:
        return self.num_steps / self.of_steps

    def wins_over(self, quality: float) -> bool:
        """True where they come nearer than the cache, whose PSNR or SSIM `quality` is."""
        return (self.psnr_db if self.ssim is None else self.ssim) > quality

    def __str__(self) -> str:
        also = "" if self.ssim is None else f", SSIM {self.ssim:.3f}"
        return (
            f"{self.num_steps} of {self.of_steps} steps, uncached: {self.psnr_db:.1f} dB{also} at "
            f"{self.share:.0%}"
        )


def num_steps_for(share: float, of_steps: int) -> int:
    """The most steps that cost no more than this share of the work; one at least."""
    return max(int(share * of_steps + 1e-6), 1)
