"""Video models whose blocks carry the video and the text."""

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    MochiTransformer3DModel,
)
from diffusers.models.transformers.transformer_motif_video import MotifVideoTransformer3DModel
from torch import arange

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, POOLED_DIM, ROPE_DIMS, TEXT_DIM
from zoo.entry import (
    BATCH,
    CHANNELS,
    HEADS,
    NUM_TEXT_TOKENS,
    SIZE,
    VIDEO,
    Draw,
    Entry,
    Inputs,
    by_whole_thousands,
)
from zoo.joint import ragged_mask
from zoo.wan import one_text

_BLOCKS = ("transformer_blocks",)
_TWO_LISTS = ("transformer_blocks", "single_transformer_blocks")
_DEPTHS = {"num_layers": 4}
_TWO_DEPTHS = {"num_layers": 1, "num_single_layers": 3}
_FRAMES_FIRST = (1, 2, NUM_CHANNELS, 2 * SIZE, 2 * SIZE)
_IMAGE_DIM = 20
_COG = {
    **CHANNELS,
    **HEADS,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_DIM,
    "sample_width": 2 * SIZE,
    "sample_height": 2 * SIZE,
    "sample_frames": 5,
    "max_text_seq_length": NUM_TEXT_TOKENS,
}
_FACE = {
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 8,
    "LFE_vit_dim": 8,
    "LFE_depth": 1,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 2,
    "LFE_output_dim": 21,
    "LFE_ff_mult": 1,
    "LFE_num_scale": 1,
}
_EASY = {
    **CHANNELS,
    **HEADS,
    "patch_size": 2,
    "time_embed_dim": 16,
    "text_embed_dim": TEXT_DIM,
}
_HUNYUAN = {
    **CHANNELS,
    **HEADS,
    "num_refiner_layers": 2,
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "rope_axes_dim": ROPE_DIMS,
}
_HUNYUAN15 = {
    **CHANNELS,
    **HEADS,
    "num_refiner_layers": 2,
    "patch_size": 2,
    "text_embed_dim": TEXT_DIM,
    "text_embed_2_dim": POOLED_DIM,
    "image_embed_dim": _IMAGE_DIM,
    "rope_axes_dim": ROPE_DIMS,
}


def _rotary(draw: Draw) -> Inputs:
    shape = (2 * SIZE * SIZE, HEAD_DIM)
    return {**one_text(draw), "image_rotary_emb": (draw.normal(*shape), draw.normal(*shape))}


def _identity(draw: Draw) -> Inputs:
    face = {"id_cond": draw.normal(1, 8), "id_vit_hidden": [draw.normal(1, 4, 8)]}
    return {**one_text(draw), **face}


def _masked_pair(draw: Draw) -> Inputs:
    mask = ragged_mask().bool()
    return {
        "encoder_hidden_states": draw.text(),
        "encoder_attention_mask": mask,
        "return_dict": False,
    }


def _masked(draw: Draw) -> Inputs:
    return {**one_text(draw), "encoder_attention_mask": ragged_mask()[-1:]}


def _pooled(draw: Draw) -> Inputs:
    guidance = {"guidance": torch.full([1], 6000.0)}
    return {**_masked(draw), **guidance, "pooled_projections": draw.normal(1, POOLED_DIM)}


def _unguided(draw: Draw) -> Inputs:
    return {**_pooled(draw), "guidance": None}


def _history(draw: Draw) -> Inputs:
    """Earlier frames, the older the coarser, and the first image."""
    size = (2 * SIZE, 2 * SIZE)
    return {
        **_pooled(draw),
        "image_embeds": draw.normal(1, 3, _IMAGE_DIM),
        "indices_latents": arange(9, 11),
        "latents_clean": draw.normal(1, NUM_CHANNELS, 2, *size),
        "indices_latents_clean": torch.tensor([0, 8]),
        "latents_history_2x": draw.normal(1, NUM_CHANNELS, 2, *size),
        "indices_latents_history_2x": arange(6, 8),
        "latents_history_4x": draw.normal(1, NUM_CHANNELS, 4, *size),
        "indices_latents_history_4x": arange(2, 6),
    }


def _three_encoders(draw: Draw) -> Inputs:
    return {
        **_masked(draw),
        "encoder_hidden_states_2": draw.text(1, POOLED_DIM),
        "encoder_attention_mask_2": ragged_mask()[-1:],
        "image_embeds": draw.normal(1, 3, _IMAGE_DIM),
    }


JOINT_VIDEO = (
    Entry(
        "cogvideox_2b",
        CogVideoXTransformer3DModel,
        _COG,
        _DEPTHS,
        _BLOCKS,
        _FRAMES_FIRST,
        one_text,
        by_whole_thousands,
    ),
    Entry(
        "cogvideox_5b",
        CogVideoXTransformer3DModel,
        {**_COG, "use_rotary_positional_embeddings": True},
        _DEPTHS,
        _BLOCKS,
        _FRAMES_FIRST,
        _rotary,
        by_whole_thousands,
    ),
    Entry(
        "consis_id",
        ConsisIDTransformer3DModel,
        {**_COG, **_FACE},
        _DEPTHS,
        _BLOCKS,
        _FRAMES_FIRST,
        _identity,
        by_whole_thousands,
    ),
    Entry(
        "mochi",
        MochiTransformer3DModel,
        {
            **HEADS,
            "in_channels": NUM_CHANNELS,
            "pooled_projection_dim": POOLED_DIM,
            "text_embed_dim": TEXT_DIM,
            "time_embed_dim": 16,
            "max_sequence_length": NUM_TEXT_TOKENS,
        },
        _DEPTHS,
        _BLOCKS,
        (BATCH, *VIDEO[1:]),
        _masked_pair,
    ),
    Entry(
        "easy_animate",
        EasyAnimateTransformer3DModel,
        {**_EASY, "mmdit_layers": 100},
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        one_text,
    ),
    Entry(
        "easy_animate_mixed",
        EasyAnimateTransformer3DModel,
        {**_EASY, "mmdit_layers": 2},
        {"num_layers": 6},
        _BLOCKS,
        VIDEO,
        one_text,
    ),
    Entry(
        "hunyuan_video",
        HunyuanVideoTransformer3DModel,
        _HUNYUAN,
        _TWO_DEPTHS,
        _TWO_LISTS,
        VIDEO,
        _pooled,
        by_whole_thousands,
    ),
    Entry(
        "hunyuan_video_i2v",
        HunyuanVideoTransformer3DModel,
        {**_HUNYUAN, "guidance_embeds": False, "image_condition_type": "token_replace"},
        _TWO_DEPTHS,
        _TWO_LISTS,
        VIDEO,
        _unguided,
        by_whole_thousands,
    ),
    Entry(
        "framepack",
        HunyuanVideoFramepackTransformer3DModel,
        {
            **_HUNYUAN,
            "has_image_proj": True,
            "image_proj_dim": _IMAGE_DIM,
            "has_clean_x_embedder": True,
        },
        _TWO_DEPTHS,
        _TWO_LISTS,
        VIDEO,
        _history,
        by_whole_thousands,
        breaks=True,
    ),
    Entry(
        "hunyuan_video15",
        HunyuanVideo15Transformer3DModel,
        _HUNYUAN15,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _three_encoders,
        breaks=True,
    ),
    Entry(
        "motif_video",
        MotifVideoTransformer3DModel,
        {
            **CHANNELS,
            **HEADS,
            "text_embed_dim": TEXT_DIM,
            "rope_axes_dim": ROPE_DIMS,
            "enable_text_cross_attention_dual": True,
        },
        {"num_layers": 2, "num_single_layers": 4},
        _TWO_LISTS,
        VIDEO,
        _masked,
    ),
    Entry(
        "motif_video_decoder",
        MotifVideoTransformer3DModel,
        {
            **CHANNELS,
            **HEADS,
            "text_embed_dim": TEXT_DIM,
            "rope_axes_dim": ROPE_DIMS,
            "num_decoder_layers": 2,
        },
        {"num_layers": 2, "num_single_layers": 6},
        _TWO_LISTS,
        VIDEO,
        _masked,
    ),
)
