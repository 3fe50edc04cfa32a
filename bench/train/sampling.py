"""Drawings from a trained model, through its real diffusers pipeline without VAE and text encoder.

Guidance is classifier-free: a second pass at each step, with an empty prompt (zeros).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    WanPipeline,
)
from torch import Generator, Tensor, nn

from bench.train.clips import NUM_FRAMES
from bench.train.recipes import BUSY_FLUX, FLUX, WAN, Recipe
from dit_cachegraph.demo import flux_scenes
from dit_cachegraph.demo.codec import decode

# Without a VAE the pipeline takes it that one is there that shrinks by 8, and time by 4.
WAN_SIDE_ARGUMENT = 8 * 8
WAN_FRAMES_ARGUMENT = 4 * (NUM_FRAMES - 1) + 1


def load_pipeline(recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """The pipeline around a new copy of the model, in float32 on the CPU."""
    return pipeline_around(recipe, flux_scenes.load_model(recipe.model_class, folder))


def pipeline_around(recipe: Recipe, model: nn.Module) -> DiffusionPipeline:
    """`recipe`'s pipeline, with an Euler scheduler."""
    return PIPELINES[recipe.name](model)


def _wan_pipeline(model: nn.Module) -> DiffusionPipeline:
    pipe = WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=model,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


PIPELINES: MappingProxyType[str, Callable[[nn.Module], DiffusionPipeline]] = MappingProxyType(
    {
        FLUX.name: flux_scenes.pipeline_around,
        BUSY_FLUX.name: flux_scenes.pipeline_around,
        WAN.name: _wan_pipeline,
    }
)


def embed(recipe: Recipe, folder: Path, picks: Tensor) -> Tensor:
    """[B, words, WORD_DIM] prompt embeddings of the picks [B, slots]."""
    return flux_scenes.load_words(folder)[recipe.world.word_indices(picks)]


def draw(
    recipe: Recipe,
    pipe: DiffusionPipeline,
    text: Tensor,
    *,
    num_steps: int,
    guidance: float,
    seed: int = 0,
) -> Tensor:
    """Drawings [B, ..., 3, H, W] in [-1, 1] for prompt embeddings [B, words, WORD_DIM]."""
    shape = (len(text), *recipe.latent_shape)
    noise = torch.randn(shape, generator=Generator().manual_seed(seed))
    return draw_from(recipe, pipe, text, noise, num_steps=num_steps, guidance=guidance)


@torch.no_grad()
def draw_from(
    recipe: Recipe,
    pipe: DiffusionPipeline,
    text: Tensor,
    noise: Tensor,
    *,
    num_steps: int,
    guidance: float,
    levels: Sequence[float] | None = None,
) -> Tensor:
    """The same from white noise [B, ...] of the latents' shape. `levels` are noise levels before
    the scheduler shifts them, for FLUX alone; without them the pipeline's own."""
    arguments = _flux_arguments if isinstance(pipe, FluxPipeline) else _wan_arguments
    given = {} if levels is None else {"sigmas": levels}
    result = pipe(
        latents=recipe.start(noise),
        prompt_embeds=text,
        negative_prompt_embeds=torch.zeros_like(text),
        num_inference_steps=num_steps,
        output_type="latent",
        return_dict=False,
        **arguments(text, guidance),
        **given,
    )
    return decode(recipe.unpack(result[0])).clamp(-1, 1)


def _flux_arguments(text: Tensor, guidance: float) -> dict[str, object]:
    """The model takes no guidance of its own, so `guidance_scale` has no effect."""
    return {
        "pooled_prompt_embeds": text.mean(1),
        "negative_pooled_prompt_embeds": torch.zeros_like(text[:, 0]),
        "true_cfg_scale": guidance,
        "height": flux_scenes.SIDE_ARGUMENT,
        "width": flux_scenes.SIDE_ARGUMENT,
    }


def _wan_arguments(_text: Tensor, guidance: float) -> dict[str, object]:
    return {
        "guidance_scale": guidance,
        "num_frames": WAN_FRAMES_ARGUMENT,
        "height": WAN_SIDE_ARGUMENT,
        "width": WAN_SIDE_ARGUMENT,
    }
