"""Kandinsky's video models: dense and sparse attention, with sound and without."""

import torch
from diffusers import Kandinsky5Transformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_kandinsky6 import Kandinsky6Transformer3DModel
from diffusers.models.transformers.transformer_kandinsky6_sr import Kandinsky6SRTransformer3DModel
from torch import Tensor, arange, ones

from support.tiny_models import NUM_CHANNELS, POOLED_DIM, ROPE_DIMS, TEXT_DIM
from zoo.entry import NUM_TEXT_TOKENS, SIZE, WIDTH, Draw, Entry, Inputs
from zoo.wan import one_text

_VISUAL = ("visual_transformer_blocks",)
_NUM_AUDIO = 9
_KANDINSKY = {
    "in_visual_dim": NUM_CHANNELS,
    "out_visual_dim": NUM_CHANNELS,
    "in_text_dim": TEXT_DIM,
    "in_text_dim2": POOLED_DIM,
    "time_dim": 16,
    "model_dim": WIDTH,
    "ff_dim": 2 * WIDTH,
    "num_text_blocks": 2,
    "axes_dims": ROPE_DIMS,
}


def _kandinsky5(draw: Draw) -> Inputs:
    return {
        **one_text(draw),
        "pooled_projections": draw.normal(1, POOLED_DIM),
        "visual_rope_pos": (arange(2), arange(SIZE), arange(SIZE)),
        "text_rope_pos": arange(NUM_TEXT_TOKENS),
    }


def _nabla(draw: Draw) -> Inputs:
    """Sparse attention over blocks of 64 tokens, of which there are 2 x 2 x 2."""
    for block in draw.model.visual_transformer_blocks:
        # `set_attention_backend` would set it for every other model as well.
        block.self_attention.processor._attention_backend = AttentionBackendName.FLEX
    sparse = {"sta_mask": ones(1, 1, 8, 8, dtype=torch.bool), "P": 0.9, "to_fractal": True}
    positions = (arange(2), arange(16), arange(16))
    return {**_kandinsky5(draw), "visual_rope_pos": positions, "sparse_params": sparse}


def _nothing(draw: Draw) -> Inputs:
    return {"return_dict": False}


def _kandinsky6(draw: Draw) -> Inputs:
    return {**one_text(draw), "pooled_projections": draw.normal(1, POOLED_DIM)}


def _kandinsky6_latents(latents: Tensor, level: float) -> Inputs:
    shape = (1, 2, 2 * SIZE, 2 * SIZE, NUM_CHANNELS)
    num_pixels = 8 * SIZE * SIZE
    return {
        "hidden_states": latents[:, :num_pixels].reshape(shape),
        "audio_hidden_states": latents[:, num_pixels:],
        "timestep": torch.full([1], 1000 * level),
    }


KANDINSKY = (
    Entry(
        "kandinsky5",
        Kandinsky5Transformer3DModel,
        _KANDINSKY,
        {"num_visual_blocks": 4},
        _VISUAL,
        (1, 2, 2 * SIZE, 2 * SIZE, NUM_CHANNELS),
        _kandinsky5,
        stride=0.0002,
    ),
    Entry(
        "kandinsky5_nabla",
        Kandinsky5Transformer3DModel,
        {**_KANDINSKY, "attention_type": "nabla"},
        {"num_visual_blocks": 4},
        _VISUAL,
        (1, 2, 32, 32, NUM_CHANNELS),
        _nabla,
        stride=0.0002,
    ),
    Entry(
        "kandinsky6_sr",
        Kandinsky6SRTransformer3DModel,
        {
            "in_visual_dim": 4,
            "out_visual_dim": 9,
            "time_dim": 16,
            "patch_size": (1, 2, 2),
            "model_dim": WIDTH,
            "ff_dim": 2 * WIDTH,
            "axes_dims": ROPE_DIMS,
        },
        {"num_visual_blocks": 4},
        _VISUAL,
        (1, 2, 16, 16, 9),
        _nothing,
    ),
    Entry(
        "kandinsky6",
        Kandinsky6Transformer3DModel,
        {
            **_KANDINSKY,
            "visual_cond": False,
            "in_audio_dim": NUM_CHANNELS,
            "out_audio_dim": NUM_CHANNELS,
        },
        {"num_visual_blocks": 4},
        ("visual_transformer_blocks",),
        (1, 8 * SIZE * SIZE + _NUM_AUDIO, NUM_CHANNELS),
        _kandinsky6,
        _kandinsky6_latents,
        stride=0.0002,
    ),
)
