"""Drawings from a trained model, through its real diffusers pipeline without VAE and text encoder.

Guidance is classifier-free: a second pass at each step, with an empty prompt (zeros).
"""

from collections.abc import Callable
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
from bench.train.codec import decode
from bench.train.recipes import FLUX, TOKENS_A_SIDE, WAN, Recipe
from bench.train.shelf import get_model, get_words

# Without a VAE the pipelines take it that one is there that shrinks by 8 (and Wan's time by 4).
FLUX_SIDE_ARGUMENT = TOKENS_A_SIDE * 8 * 2
WAN_SIDE_ARGUMENT = 8 * 8
WAN_FRAMES_ARGUMENT = 4 * (NUM_FRAMES - 1) + 1


def load_pipeline(recipe: Recipe, folder: Path) -> DiffusionPipeline:
    """The pipeline around a new copy of the model, in float32 on the CPU."""
    return pipeline_around(recipe, get_model(folder, recipe))


def pipeline_around(recipe: Recipe, model: nn.Module) -> DiffusionPipeline:
    """`recipe`'s pipeline, with an Euler scheduler."""
    pipe = PIPELINES[recipe.name](model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _flux_pipeline(model: nn.Module) -> DiffusionPipeline:
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
    )


def _wan_pipeline(model: nn.Module) -> DiffusionPipeline:
    return WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=model,
    )


PIPELINES: MappingProxyType[str, Callable[[nn.Module], DiffusionPipeline]] = MappingProxyType(
    {FLUX.name: _flux_pipeline, WAN.name: _wan_pipeline}
)


def embed(recipe: Recipe, folder: Path, picks: Tensor) -> Tensor:
    """[B, words, WORD_DIM] prompt embeddings of the picks [B, slots]."""
    return get_words(folder)[recipe.world.word_indices(picks)]


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
) -> Tensor:
    """The same from white noise [B, ...] of the latents' shape."""
    arguments = _flux_arguments if isinstance(pipe, FluxPipeline) else _wan_arguments
    result = pipe(
        latents=recipe.start(noise),
        prompt_embeds=text,
        negative_prompt_embeds=torch.zeros_like(text),
        num_inference_steps=num_steps,
        output_type="latent",
        return_dict=False,
        **arguments(text, guidance),
    )
    return decode(recipe.unpack(result[0])).clamp(-1, 1)


def _flux_arguments(text: Tensor, guidance: float) -> dict[str, object]:
    """The model takes no guidance of its own, so `guidance_scale` has no effect."""
    return {
        "pooled_prompt_embeds": text.mean(1),
        "negative_pooled_prompt_embeds": torch.zeros_like(text[:, 0]),
        "true_cfg_scale": guidance,
        "height": FLUX_SIDE_ARGUMENT,
        "width": FLUX_SIDE_ARGUMENT,
    }


def _wan_arguments(_text: Tensor, guidance: float) -> dict[str, object]:
    return {
        "guidance_scale": guidance,
        "num_frames": WAN_FRAMES_ARGUMENT,
        "height": WAN_SIDE_ARGUMENT,
        "width": WAN_SIDE_ARGUMENT,
    }
