"""What pictures are compared with, the figures of a method, and what has to hold first."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from bench.common.decibels import mean_db
from bench.common.machine import this_machine
from bench.quality.draw import Artist, Drawn, by_ours, by_pipeline
from bench.quality.models import Pictures, QualityModel
from bench.quality.rows import Key, Row
from bench.quality.solvers import adams_bashforth, euler, largest_difference, unipc
from bench.train.reader import Reader, accuracy, flatten_frames, get_reader
from bench.train.shelf import kept_in
from dit_cachegraph.metrics.pixels import psnr_db, ssim_of_frames

CONVERGED_STEPS = 200
MAX_ERROR = 1e-4
MAX_LEVEL_ERROR = 1e-5
NUM_DRAWINGS = 1024
DRAWINGS_SEED = 5


@dataclass(frozen=True, slots=True)
class References:
    """What pictures are compared with, in [0, 1]."""

    uncached: Pictures
    converged: Pictures


def references_for(artist: Artist, num_steps: int) -> References:
    """Drawn, or read from where an earlier run drew them."""
    return References(artist.uncached(num_steps), artist.uncached(CONVERGED_STEPS))


class Jury:
    """The reader of a model's drawings: reads the words back, and its features are what the
    Fréchet distance to drawings is taken of."""

    def __init__(self, model: QualityModel) -> None:
        self._model = model
        world = model.recipe.world
        self._reader: Reader = get_reader(kept_in(model.recipe.folder), world)
        drawings, _ = world.draw(NUM_DRAWINGS, Generator().manual_seed(DRAWINGS_SEED))
        shown = flatten_frames(drawings.clamp(-1, 1))
        _, channels, height, width = shown.shape
        self._distance = FrechetInceptionDistance(
            self._reader.features,
            reset_real_features=False,
            normalize=True,
            input_img_size=(channels, height, width),
        )
        self._distance.update(shown, real=True)

    def read_back(self, pictures: Pictures) -> dict[str, float]:
        """The share of the pictures whose word is read back, by slot."""
        world, picks = self._model.recipe.world, self._model.picks[: len(pictures)]
        return accuracy(world, self._reader, 2 * pictures - 1, picks)

    def distance(self, pictures: Pictures) -> float | None:
        """Fréchet distance; None for one picture. With few it is too large, by as much for all."""
        if len(pictures) < 2:
            return None
        self._distance.reset()
        self._distance.update(flatten_frames(2 * pictures - 1), real=False)
        return float(self._distance.compute())


def check(artist: Artist, references: References, num_steps: int) -> None:
    """Nothing is measured before this holds, on the first batch.

    Raises:
        RuntimeError: what computes every step isn't the uncached picture, or isn't counted as such,
            or the solvers don't share a schedule.
    """
    never = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.0}
    few = artist.of_first_batch
    for name, drawn in (
        ("ours at threshold 0", by_ours(few, never, num_steps)),
        ("a pipeline without a cache", by_pipeline(few, artist.model.load(), num_steps)),
    ):
        wanted = references.uncached[: few.num_pictures]
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


def row_of(
    key: Key, group: str, drawn: Drawn, references: References, jury: Jury, seconds: float
) -> Row:
    """The figures of one method."""
    to_uncached = psnr_db(drawn.pictures, references.uncached)
    return Row(
        key=key,
        group=group,
        share=drawn.share,
        psnr_db=mean_db(to_uncached),
        psnr_db_worst=_finite(to_uncached.min().item()),
        ssim=_ssim(drawn.pictures, references.uncached),
        psnr_db_converged=mean_db(psnr_db(drawn.pictures, references.converged)),
        ssim_converged=_ssim(drawn.pictures, references.converged),
        read_back=jury.read_back(drawn.pictures),
        frechet=jury.distance(drawn.pictures),
        seconds=seconds,
        machine=str(this_machine()),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ssim(pictures: Tensor, references: Tensor) -> float:
    """The mean over pictures, and frames."""
    frames = [p.flatten(0, -4).movedim(1, -1).numpy() for p in (references, pictures)]
    return ssim_of_frames(zip(*frames, strict=True))
