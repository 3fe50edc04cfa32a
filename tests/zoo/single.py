"""Image models whose blocks carry one sequence of text and image tokens."""

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    OmniGenTransformer2DModel,
    QwenImage21Transformer2DModel,
)
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.models.transformers.transformer_ideogram4 import Ideogram4Transformer2DModel
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor, arange, cat, ones, zeros

from support.tiny_models import NUM_CHANNELS, NUM_HEADS, POOLED_DIM, ROPE_DIMS, TEXT_DIM
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
    Experts,
    Inputs,
    by_ones,
    by_rising_ones,
    grid_ids,
)
from zoo.joint import ragged_mask, text

_NUM_TOKENS = SIZE * SIZE
_QWEN21 = {
    **CHANNELS,
    **HEADS,
    **ROPE,
    "context_in_dim": TEXT_DIM,
}


def _with_lengths(draw: Draw) -> Inputs:
    lengths = torch.tensor([NUM_TEXT_TOKENS, NUM_TEXT_TOKENS - 2])
    return {"text_bth": draw.text(), "text_lens": lengths, "return_dict": False}


def _prompt_tokens(draw: Draw) -> Inputs:
    """The prompt, one token for the timestep, and the image see each other."""
    length = NUM_TEXT_TOKENS + 1 + _NUM_TOKENS
    return {
        "input_ids": draw.integers(32, BATCH, NUM_TEXT_TOKENS),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": ones(BATCH, length, length),
        "position_ids": arange(length).expand(BATCH, -1).contiguous(),
        "return_dict": False,
    }


def _llama_layers(draw: Draw) -> Inputs:
    """A layer of the llama for every block, and T5's text."""
    return {
        "encoder_hidden_states_t5": draw.text(),
        "encoder_hidden_states_llama3": [draw.text()],
        "pooled_embeds": draw.normal(BATCH, POOLED_DIM),
        "return_dict": False,
    }


def _by_timesteps(latents: Tensor, level: float) -> Inputs:
    return {"hidden_states": latents, "timesteps": torch.full([len(latents)], 1000 * level)}


def _as_its_tokens(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x)


def _with_slots(draw: Draw) -> Inputs:
    """Every slot of the prompt stands for 2 x 2 tokens of the image."""
    mask = cat([zeros(BATCH, NUM_TEXT_TOKENS), ones(BATCH, _NUM_TOKENS // 4)], dim=1)
    return {
        **text(draw),
        "img_shapes": [[(1, SIZE, SIZE)]] * BATCH,
        "img_mask": mask.bool(),
    }


@torch.no_grad()
def _with_kept_prompt(draw: Draw) -> Inputs:
    """The keys and values of the prompt come from a first call."""
    inputs = _with_slots(draw)
    kept = QwenImage21KVCache(len(draw.model.transformer_blocks))
    first = by_ones(draw.normal(*TOKENS), 1.0)
    draw.model(**inputs, **first, kv_cache=kept, kv_cache_mode="extract")
    return {**inputs, "kv_cache": kept, "kv_cache_mode": "cached"}


def _ideogram(draw: Draw) -> Inputs:
    """Text features and image tokens lie side by side in one sequence."""
    length = NUM_TEXT_TOKENS + _NUM_TOKENS
    positions = cat([arange(NUM_TEXT_TOKENS).float()[:, None].expand(-1, 3), grid_ids()])
    indicator = cat([torch.full([NUM_TEXT_TOKENS], 3), torch.full([_NUM_TOKENS], 2)])
    return {
        "encoder_hidden_states": draw.normal(BATCH, length, TEXT_DIM),
        "position_ids": positions.long().expand(BATCH, -1, -1).contiguous(),
        "segment_ids": zeros(BATCH, length, dtype=torch.int64),
        "indicator": indicator.expand(BATCH, -1).contiguous(),
        "return_dict": False,
    }


def _text_layers(draw: Draw) -> Inputs:
    positions = cat([zeros(NUM_TEXT_TOKENS, 3), grid_ids()])
    return {
        "encoder_hidden_states": draw.normal(BATCH, NUM_TEXT_TOKENS, 3, TEXT_DIM),
        "position_ids": positions,
        "encoder_attention_mask": ragged_mask().bool(),
        "return_dict": False,
    }


SINGLE = (
    Entry(
        "ernie_image",
        ErnieImageTransformer2DModel,
        {
            **CHANNELS,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "ffn_hidden_size": 2 * WIDTH,
            "text_in_dim": TEXT_DIM,
            "rope_axes_dim": ROPE_DIMS,
        },
        {"num_layers": 4},
        ("layers",),
        (BATCH, NUM_CHANNELS, SIZE, SIZE),
        _with_lengths,
    ),
    Entry(
        "omnigen",
        OmniGenTransformer2DModel,
        {
            "in_channels": NUM_CHANNELS,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "num_key_value_heads": NUM_HEADS,
            "intermediate_size": 2 * WIDTH,
            "pad_token_id": 0,
            "vocab_size": 32,
            "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
            "pos_embed_max_size": 8,
        },
        {"num_layers": 4},
        ("layers",),
        IMAGE,
        _prompt_tokens,
        by_rising_ones,
        breaks=True,
    ),
    Entry(
        "hidream",
        HiDreamImageTransformer2DModel,
        {
            **CHANNELS,
            **HEADS,
            "patch_size": 2,
            "caption_channels": [TEXT_DIM, TEXT_DIM],
            "text_emb_dim": POOLED_DIM,
            "axes_dims_rope": ROPE_DIMS,
            "max_resolution": (8, 8),
        },
        {"num_layers": 2, "num_single_layers": 2, "llama_layers": [0] * 4},
        ("double_stream_blocks", "single_stream_blocks"),
        IMAGE,
        _llama_layers,
        _by_timesteps,
        experts=Experts(MOEFeedForwardSwiGLU, "moe_infer", _as_its_tokens),
    ),
    Entry(
        "qwen_image21",
        QwenImage21Transformer2DModel,
        _QWEN21,
        {"num_layers": 4},
        ("transformer_blocks",),
        TOKENS,
        _with_slots,
        by_ones,
        breaks=True,
    ),
    Entry(
        "qwen_image21_kv",
        QwenImage21Transformer2DModel,
        _QWEN21,
        {"num_layers": 4},
        ("transformer_blocks",),
        TOKENS,
        _with_kept_prompt,
        by_ones,
        breaks=True,
    ),
    Entry(
        "ideogram4",
        Ideogram4Transformer2DModel,
        {
            "in_channels": NUM_CHANNELS,
            **HEADS,
            "intermediate_size": 2 * WIDTH,
            "adaln_dim": 16,
            "llm_features_dim": TEXT_DIM,
            "mrope_section": (4, 2, 2),
        },
        {"num_layers": 4},
        ("layers",),
        (BATCH, NUM_TEXT_TOKENS + _NUM_TOKENS, NUM_CHANNELS),
        _ideogram,
        by_rising_ones,
        stride=0.00005,
    ),
    Entry(
        "krea2",
        Krea2Transformer2DModel,
        {
            "in_channels": NUM_CHANNELS,
            **HEADS,
            "num_key_value_heads": 1,
            "intermediate_size": 2 * WIDTH,
            "timestep_embed_dim": 16,
            "text_hidden_dim": TEXT_DIM,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "axes_dims_rope": ROPE_DIMS,
        },
        {"num_layers": 4},
        ("transformer_blocks",),
        TOKENS,
        _text_layers,
        by_ones,
        stride=0.0002,
    ),
)
