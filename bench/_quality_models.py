"""Models that draw, as the quality bench sees them: an easy and a demanding setting of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from diffusers import FluxPipeline
from torch import Tensor

from dit_cachegraph.demo.tiny_flux import (
    SIDE_ARGUMENT,
    embed,
    load_pipeline,
    pictures_from_tokens,
    shipped_prompts,
)

# Each shipped prompt from two noises.
NUM_PICTURES = 64

Pictures = Tensor
"""[B, 3, H, W] in [0, 1]."""


@dataclass(frozen=True, slots=True)
class QualityModel:
    """One model under one setting.

    `load` makes a new pipeline; `draw(pipe, i, num_steps)` picture `i` [1, 3, H, W] in [0, 1],
    always of the same prompt and from the same noise. A picture is drawn alone, so that what a
    cache decides for it doesn't hang on its neighbours.
    """

    name: str
    num_branches: int
    """Calls of the transformer a step."""
    num_pictures: int
    load: Callable[[], FluxPipeline]
    draw: Callable[[FluxPipeline, int, int], Pictures]


def _tiny_flux(name: str, guidance: float) -> QualityModel:
    prompts = shipped_prompts()
    embeddings = embed(prompts)

    def draw(pipe: FluxPipeline, i: int, num_steps: int) -> Pictures:
        text = embeddings[i % len(prompts)][None]
        nothing = torch.zeros_like(text)
        tokens = pipe(
            prompt_embeds=text,
            pooled_prompt_embeds=text.mean(1),
            negative_prompt_embeds=nothing,
            negative_pooled_prompt_embeds=nothing.mean(1),
            true_cfg_scale=guidance,
            guidance_scale=0.0,
            height=SIDE_ARGUMENT,
            width=SIDE_ARGUMENT,
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(i),
            output_type="latent",
        ).images
        return (pictures_from_tokens(tokens).clamp(-1, 1) + 1) / 2

    return QualityModel(name, 2 if guidance > 1 else 1, NUM_PICTURES, load_pipeline, draw)


# Without guidance the paths are nearly straight, and methods rank otherwise than under it: a rule
# that was chosen on the first alone is a trap.
MODELS: Mapping[str, Callable[[], QualityModel]] = MappingProxyType(
    {
        "tiny-flux": lambda: _tiny_flux("tiny-flux", guidance=1.0),
        "tiny-flux-guided": lambda: _tiny_flux("tiny-flux-guided", guidance=5.0),
    }
)
