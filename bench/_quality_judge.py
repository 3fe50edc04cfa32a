"""What pictures are compared with, the figures of a method, and what has to hold first."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench._machine import this_machine
from bench._quality_draw import Artist, Drawn, by_ours, by_pipeline, by_solver
from bench._quality_rows import Key, Row
from bench._quality_solvers import adams_bashforth, euler, largest_difference, unipc
from dit_cachegraph.metrics.pixels import psnr_db, ssim

CONVERGED_STEPS = 200
MAX_ERROR = 1e-4
MAX_LEVEL_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class References:
    """What pictures are compared with, [B, 3, H, W] in [0, 1]."""

    uncached: Tensor
    converged: Tensor


def references_for(artist: Artist, num_steps: int, folder: Path) -> References:
    """Drawn, or read from `folder` where an earlier run drew them."""
    name = f"{artist.model.name}-{artist.num_pictures}"
    drawn = []
    for steps in (num_steps, CONVERGED_STEPS):
        path = folder / f"{name}-{steps}.pt"
        if not path.exists():
            print(f"{artist.model.name}: draws {artist.num_pictures} pictures in {steps} steps")
            torch.save(by_solver(artist, euler(), steps, steps).pictures, path)
        drawn.append(torch.load(path))
    return References(*drawn)


def check(artist: Artist, references: References, num_steps: int) -> None:
    """Nothing is measured before this holds.

    Raises:
        RuntimeError: what computes every step isn't the uncached picture, or isn't counted as such,
            or the solvers don't share a schedule.
    """
    never = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.0}
    for name, drawn in (
        ("ours at threshold 0", by_ours(artist, never, num_steps)),
        ("a pipeline without a cache", by_pipeline(artist, artist.model.load(), num_steps)),
    ):
        wanted = references.uncached
        error = ((drawn.pictures - wanted).norm() / wanted.norm()).item()
        if not error <= MAX_ERROR or abs(drawn.share - 1) > MAX_ERROR:
            raise RuntimeError(
                f"{name} is off by {error:.2g} and ran {drawn.share:.3f} of the work; if the model "
                "is another one since the first run, give --out another folder"
            )
    for other in (adams_bashforth(), unipc()):
        moved = largest_difference(euler(), other, num_steps)
        if not moved <= MAX_LEVEL_ERROR:
            raise RuntimeError(f"{type(other).__name__}'s noise levels are off by {moved:.2g}")


def row_of(key: Key, group: str, drawn: Drawn, references: References, seconds: float) -> Row:
    """The figures of one method."""
    to_uncached = psnr_db(drawn.pictures, references.uncached)
    return Row(
        key=key,
        group=group,
        share=drawn.share,
        psnr_db=_finite(to_uncached.mean().item()),
        psnr_db_worst=_finite(to_uncached.min().item()),
        ssim=_ssim(drawn.pictures, references.uncached),
        psnr_db_converged=_finite(psnr_db(drawn.pictures, references.converged).mean().item()),
        ssim_converged=_ssim(drawn.pictures, references.converged),
        seconds=seconds,
        machine=str(this_machine()),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ssim(pictures: Tensor, references: Tensor) -> float:
    pairs = zip(references.movedim(1, -1).numpy(), pictures.movedim(1, -1).numpy(), strict=True)
    values = [ssim(*pair) for pair in pairs]
    return sum(values) / len(values)
