"""Image models that refine the text and the image apart before their blocks carry them as one."""

import torch
from diffusers import Lumina2Transformer2DModel, ZImageTransformer2DModel
from torch import Tensor, ones

from support.tiny_models import NUM_CHANNELS, NUM_HEADS, ROPE_DIMS, TEXT_DIM
from zoo.entry import (
    BATCH,
    CHANNELS,
    IMAGE,
    NUM_TEXT_TOKENS,
    SIZE,
    WIDTH,
    Draw,
    Entry,
    Inputs,
    by_rising_ones,
)
from zoo.joint import ragged_mask, text

_LUMINA2 = {
    **CHANNELS,
    "sample_size": 8,
    "hidden_size": WIDTH,
    "num_refiner_layers": 2,
    "num_attention_heads": NUM_HEADS,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": ROPE_DIMS,
    "axes_lens": (32, 32, 32),
    "cap_feat_dim": TEXT_DIM,
}

_Z_IMAGE = {
    "in_channels": NUM_CHANNELS,
    "dim": WIDTH,
    "n_refiner_layers": 2,
    "n_heads": NUM_HEADS,
    "n_kv_heads": NUM_HEADS,
    "cap_feat_dim": TEXT_DIM,
    "axes_dims": list(ROPE_DIMS),
    "axes_lens": [128, 32, 32],
}


def _full_mask(draw: Draw) -> Inputs:
    mask = ones(BATCH, NUM_TEXT_TOKENS, dtype=torch.bool)
    return {**text(draw), "encoder_attention_mask": mask}


def _ragged(draw: Draw) -> Inputs:
    return {**text(draw), "encoder_attention_mask": ragged_mask().bool()}


def _one_caption(draw: Draw) -> Inputs:
    return {"cap_feats": [draw.normal(NUM_TEXT_TOKENS, TEXT_DIM)], "return_dict": False}


def _two_captions(draw: Draw) -> Inputs:
    captions = [draw.normal(NUM_TEXT_TOKENS, TEXT_DIM), draw.normal(40, TEXT_DIM)]
    return {"cap_feats": captions, "return_dict": False}


def _as_list(latents: Tensor, level: float) -> Inputs:
    return {"x": list(latents), "t": torch.full([len(latents)], 1 - level)}


REFINED = (
    Entry(
        "lumina2",
        Lumina2Transformer2DModel,
        _LUMINA2,
        {"num_layers": 4},
        ("layers",),
        IMAGE,
        _full_mask,
        by_rising_ones,
        breaks=True,
    ),
    Entry(
        "lumina2_ragged",
        Lumina2Transformer2DModel,
        _LUMINA2,
        {"num_layers": 4},
        ("layers",),
        IMAGE,
        _ragged,
        by_rising_ones,
        breaks=True,
    ),
    Entry(
        "z_image",
        ZImageTransformer2DModel,
        _Z_IMAGE,
        {"n_layers": 4},
        ("layers",),
        (1, NUM_CHANNELS, 1, 2 * SIZE, 2 * SIZE),
        _one_caption,
        _as_list,
        stride=0.0002,
    ),
    Entry(
        "z_image_batch",
        ZImageTransformer2DModel,
        _Z_IMAGE,
        {"n_layers": 4},
        ("layers",),
        (BATCH, NUM_CHANNELS, 1, 2 * SIZE, 2 * SIZE),
        _two_captions,
        _as_list,
        stride=0.0002,
    ),
)
