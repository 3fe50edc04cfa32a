"""Models that draw, as the quality bench sees them: an easy and a demanding setting.

All draw in batches, and whatever decides does so for a batch at once: ours, the peers, all alike.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Generator, Tensor

from bench.quality.solvers import euler
from bench.train.recipes import BUSY_FLUX, WAN, Recipe
from bench.train.sampling import draw_from, embed, load_pipeline
from bench.train.shelf import WEIGHTS, kept_in

NUM_PICTURES = 64
SEED = 0

Pictures = Tensor
"""[B, 3, H, W], or clips [B, frames, 3, H, W], in [0, 1]."""


@dataclass(frozen=True, slots=True)
class QualityModel:
    """One model under one setting; `solver` makes the scheduler that it samples with."""

    name: str
    recipe: Recipe
    guidance: float
    solver: Callable[[], SchedulerMixin] = euler

    @property
    def num_branches(self) -> int:
        """Calls of the transformer a step."""
        return 2 if self.guidance > 1 else 1

    @property
    def grid(self) -> tuple[int, int] | None:
        """Of the tokens, where the latents don't show it: packed ones [tokens, channels]."""
        if len(self.recipe.latent_shape) > 2:  # noqa: PLR2004
            return None
        side = math.isqrt(self.recipe.latent_shape[0])
        return side, side

    @property
    def version(self) -> str:
        """Eight digits that are others where weights or guidance are."""
        weights = (kept_in(self.recipe.folder) / WEIGHTS).read_bytes()
        return hashlib.sha256(weights + repr(self.guidance).encode()).hexdigest()[:8]

    @property
    def picks(self) -> Tensor:
        """[NUM_PICTURES, slots]: what the prompts say."""
        return self.recipe.world.every_kind(NUM_PICTURES)

    def load(self) -> DiffusionPipeline:
        """A new pipeline."""
        pipe = load_pipeline(self.recipe, kept_in(self.recipe.folder))
        pipe.scheduler = self.solver()
        return pipe

    def draw(self, pipe: DiffusionPipeline, which: range, num_steps: int) -> Pictures:
        """These pictures, as one batch: each is always of the same prompt, from the same noise."""
        prompts, noise = begun(which, self.recipe.latent_shape)
        text = embed(self.recipe, kept_in(self.recipe.folder), self.picks[prompts])
        drawings = draw_from(
            self.recipe, pipe, text, noise, num_steps=num_steps, guidance=self.guidance
        )
        return (drawings + 1) / 2


def begun(which: range, latent_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The prompts of pictures, [B], and their noise, [B, ...]. Those from `NUM_PICTURES` on are of
    the second half's prompts again, from other noise."""
    shape, half = (NUM_PICTURES, *latent_shape), NUM_PICTURES // 2
    seeds = range(SEED, SEED + 1 + max(which) // NUM_PICTURES)
    noise = torch.cat([torch.randn(shape, generator=Generator().manual_seed(s)) for s in seeds])
    rows = torch.tensor(which)
    return torch.where(rows < NUM_PICTURES, rows, half + rows % half), noise[rows]


# Without guidance the paths are nearly straight, and methods rank otherwise than under it: a rule
# that was chosen on the first alone is a trap. With it, half the steps come to 32 dB or less.
MODELS: Mapping[str, QualityModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            QualityModel("flux-scenes", BUSY_FLUX, guidance=1.0),
            QualityModel("flux-scenes-guided", BUSY_FLUX, guidance=7.0),
            QualityModel("wan-clips", WAN, guidance=1.0),
            QualityModel("wan-clips-guided", WAN, guidance=7.0),
        )
    }
)
