"""Image models of one stream whose blocks read the text by cross-attention, or none at all."""

import torch
from diffusers import (
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    LuminaNextDiT2DModel,
    NucleusMoEImageTransformer2DModel,
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_CLASSES, NUM_HEADS, POOLED_DIM, TEXT_DIM
from zoo.entry import (
    BATCH,
    CHANNELS,
    HEADS,
    IMAGE,
    NUM_TEXT_TOKENS,
    ROPE,
    SIZE,
    TOKENS,
    WIDTH,
    Draw,
    Entry,
    Inputs,
    by_ones,
    by_whole_thousands,
)
from zoo.joint import ragged_mask, text

_BLOCKS = ("transformer_blocks",)
_DEPTHS = {"num_layers": 4}
_CROSS = {**HEADS, "cross_attention_dim": WIDTH, "caption_channels": TEXT_DIM}
_SANA = {
    **CHANNELS,
    **_CROSS,
    "num_cross_attention_heads": NUM_HEADS,
    "cross_attention_head_dim": HEAD_DIM,
    "sample_size": 8,
}
_HUNYUAN_DIT = {
    **HEADS,
    "in_channels": NUM_CHANNELS,
    "hidden_size": WIDTH,
    "patch_size": 2,
    "sample_size": 8,
    "cross_attention_dim": TEXT_DIM,
    "cross_attention_dim_t5": TEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "text_len": NUM_TEXT_TOKENS,
    "text_len_t5": NUM_TEXT_TOKENS,
    "use_style_cond_and_image_meta_size": False,
}


def _class_labels(draw: Draw) -> Inputs:
    return {"class_labels": draw.integers(NUM_CLASSES, BATCH), "return_dict": False}


def _masked(draw: Draw) -> Inputs:
    return {**text(draw), "encoder_attention_mask": ragged_mask()}


def _pixart_alpha(draw: Draw) -> Inputs:
    size = {"resolution": draw.normal(BATCH, 2), "aspect_ratio": draw.normal(BATCH, 1)}
    return {**_masked(draw), "added_cond_kwargs": size}


def _no_sizes(draw: Draw) -> Inputs:
    return {**_masked(draw), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _guided(draw: Draw) -> Inputs:
    return {**_masked(draw), "guidance": torch.full([BATCH], 4.5)}


def _sana_controls(draw: Draw) -> Inputs:
    controls = tuple(draw.normal(BATCH, 4 * SIZE * SIZE, WIDTH) for _ in range(2))
    return {**_masked(draw), "controlnet_block_samples": controls}


def _two_texts(draw: Draw) -> Inputs:
    return {
        **text(draw),
        "text_embedding_mask": ragged_mask(),
        "encoder_hidden_states_t5": draw.text(),
        "text_embedding_mask_t5": ragged_mask(),
        "image_rotary_emb": (
            draw.normal(SIZE * SIZE, HEAD_DIM),
            draw.normal(SIZE * SIZE, HEAD_DIM),
        ),
    }


def _lumina_next(draw: Draw) -> Inputs:
    rotary = get_2d_rotary_pos_embed_lumina(HEAD_DIM, 16, 16)
    masked = {"encoder_mask": ragged_mask(), "cross_attention_kwargs": {}}
    return {**text(draw), **masked, "image_rotary_emb": rotary}


def _mask_of_text(draw: Draw) -> Inputs:
    return {**text(draw), "attention_mask": ragged_mask()}


def _nucleus(draw: Draw) -> Inputs:
    mask = {"encoder_hidden_states_mask": ragged_mask().bool()}
    return {**text(draw), **mask, "img_shapes": [(1, SIZE, SIZE)] * BATCH}


CROSS = (
    Entry(
        "dit",
        DiTTransformer2DModel,
        {**HEADS, "in_channels": NUM_CHANNELS, "sample_size": 8, "num_embeds_ada_norm": 10},
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        _class_labels,
        by_whole_thousands,
    ),
    Entry(
        "pixart_sigma",
        PixArtTransformer2DModel,
        {
            **CHANNELS,
            **_CROSS,
            "sample_size": 8,
            "use_additional_conditions": False,
        },
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        _no_sizes,
        by_whole_thousands,
    ),
    Entry(
        "pixart_alpha",
        PixArtTransformer2DModel,
        {
            **CHANNELS,
            **_CROSS,
            "num_attention_heads": 3,
            "cross_attention_dim": 3 * HEAD_DIM,
            "sample_size": 8,
            "use_additional_conditions": True,
        },
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        _pixart_alpha,
        by_whole_thousands,
    ),
    Entry("sana", SanaTransformer2DModel, _SANA, _DEPTHS, _BLOCKS, IMAGE, _masked),
    Entry(
        "sana_sprint",
        SanaTransformer2DModel,
        {**_SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        _guided,
        by_ones,
    ),
    Entry(
        "sana_controlnet", SanaTransformer2DModel, _SANA, _DEPTHS, _BLOCKS, IMAGE, _sana_controls
    ),
    Entry(
        "hunyuan_dit",
        HunyuanDiT2DModel,
        _HUNYUAN_DIT,
        {"num_layers": 8},
        ("blocks",),
        IMAGE,
        _two_texts,
    ),
    Entry(
        "lumina_next",
        LuminaNextDiT2DModel,
        {
            "in_channels": NUM_CHANNELS,
            "sample_size": 8,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "num_kv_heads": NUM_HEADS,
            "multiple_of": 16,
            "cross_attention_dim": TEXT_DIM,
        },
        _DEPTHS,
        ("layers",),
        IMAGE,
        _lumina_next,
        by_ones,
    ),
    Entry(
        "prx",
        PRXTransformer2DModel,
        {
            "in_channels": NUM_CHANNELS,
            "context_in_dim": TEXT_DIM,
            "hidden_size": WIDTH,
            "num_heads": NUM_HEADS,
            "axes_dim": [8, 8],
        },
        {"depth": 4},
        ("blocks",),
        IMAGE,
        _mask_of_text,
        by_ones,
        stride=0.0002,
    ),
    Entry(
        "nucleus",
        NucleusMoEImageTransformer2DModel,
        {
            "in_channels": NUM_CHANNELS,
            "out_channels": NUM_CHANNELS // 4,
            **HEADS,
            **ROPE,
            "joint_attention_dim": TEXT_DIM,
            "mlp_ratio": 8.0,
            "dense_moe_strategy": "leave_first_block_dense",
            "num_experts": 4,
            "moe_intermediate_dim": 16,
            "capacity_factors": 2.0,
        },
        _DEPTHS,
        _BLOCKS,
        TOKENS,
        _nucleus,
        by_ones,
    ),
)
