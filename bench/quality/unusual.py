"""Ways of sampling in which a cache has little to gain and may do harm: few steps, a picture to
begin with, two experts, and prompts that share nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Generator, Tensor

from bench.quality.models import NUM_PICTURES, SEED, Pictures, QualityModel
from bench.quality.schedules import FLUX_SHIFT, shifted_euler, unipc_shifted
from bench.train.recipes import BUSY_FLUX, WAN
from bench.train.sampling import draw_from, embed
from bench.train.shelf import kept_in
from dit_cachegraph.demo.codec import encode

FEW_STEPS = (4, 8)
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
USUAL_STEPS, USUAL_BATCH, USUAL_GUIDANCE = 28, 8, 3.5
# Where Wan 2.2 goes over from one expert to the other, as a share of the noise range.
EXPERTS_BOUNDARY = 0.875
DRAWINGS_SEED = 6


@dataclass(frozen=True, slots=True)
class FromPicture(QualityModel):
    """FLUX from a drawing with noise over it, as diffusers' image-to-image pipelines begin: the
    last steps of a schedule, of which `num_steps` are the share `strength`."""

    strength: float = 1.0

    def draw(self, pipe: DiffusionPipeline, which: range, num_steps: int) -> Pictures:
        """As the parent's; the drawings are of other prompts."""
        of_steps = round(num_steps / self.strength)
        levels = np.linspace(1.0, 1 / of_steps, of_steps)[-num_steps:]
        noise, rows = _noise(self), torch.tensor(which)
        drawings, _ = self.recipe.world.draw(NUM_PICTURES, Generator().manual_seed(DRAWINGS_SEED))
        first = FLUX_SHIFT * levels[0] / (1 + (FLUX_SHIFT - 1) * levels[0])
        start = first * noise + (1 - first) * self.recipe.pack(encode(drawings.clamp(-1, 1)))
        text = embed(self.recipe, kept_in(self.recipe.folder), self.picks[rows])
        drawn = draw_from(
            self.recipe, pipe, text, start[rows], num_steps=num_steps, guidance=self.guidance,
            levels=levels.tolist(),
        )  # fmt: skip
        return (drawn + 1) / 2


@dataclass(frozen=True, slots=True)
class TwoExperts(QualityModel):
    """Wan with a second transformer for the lower noise: the same weights, but another module, that
    begins in the middle of an image."""

    def load(self) -> DiffusionPipeline:
        """A new pipeline."""
        # Named, since a dataclass with slots is another class than the one that `super` means.
        pipe, other = QualityModel.load(self), QualityModel.load(self)
        parts = {**pipe.components, "transformer_2": other.transformer}
        both = type(pipe)(**parts, boundary_ratio=EXPERTS_BOUNDARY)
        both.set_progress_bar_config(disable=True)
        return both


@dataclass(frozen=True, slots=True)
class Case:
    """One way of sampling."""

    name: str
    model: QualityModel
    num_steps: int
    batch: int = USUAL_BATCH


def _noise(model: QualityModel) -> Tensor:
    shape = (NUM_PICTURES, *model.recipe.latent_shape)
    return torch.randn(shape, generator=Generator().manual_seed(SEED))


def all_cases() -> Iterator[Case]:
    """All of them."""
    flux = QualityModel("flux-few", BUSY_FLUX, 1.0, shifted_euler)
    wan = QualityModel("wan-few", WAN, 1.0, unipc_shifted)
    for steps in FEW_STEPS:
        yield Case(f"flux-scenes, shift 3, {steps} steps", flux, steps)
        yield Case(f"wan-clips, UniPC, flow shift 5, {steps} steps", wan, steps)
    for strength in STRENGTHS:
        model = FromPicture(
            f"flux-from-{strength:g}", BUSY_FLUX, USUAL_GUIDANCE, shifted_euler, strength
        )
        steps = round(strength * USUAL_STEPS)
        yield Case(f"flux-scenes from a picture, strength {strength:g}", model, steps)
    experts = TwoExperts("wan-experts", WAN, USUAL_GUIDANCE, unipc_shifted)
    yield Case("wan-clips, two experts", experts, USUAL_STEPS)
    batch = Case(
        "flux-scenes, a batch of eight unlike prompts",
        QualityModel("flux-unlike", BUSY_FLUX, USUAL_GUIDANCE, shifted_euler),
        USUAL_STEPS,
    )
    yield batch
    yield replace(batch, name="flux-scenes, the same prompts one by one", batch=1)
