"""Further video models, whose blocks read the text by cross-attention."""

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CosmosTransformer3DModel,
    LatteTransformer3DModel,
    LTXVideoTransformer3DModel,
    SanaVideoTransformer3DModel,
    SanaWMTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from diffusers.models.transformers.transformer_sana_wm_refiner import (
    SanaWMLTX2RefinerTransformer3DModel,
)
from torch import Tensor, arange, cat, ones

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_HEADS, POOLED_DIM, TEXT_DIM
from zoo.entry import (
    CHANNELS,
    HEADS,
    NUM_TEXT_TOKENS,
    SIZE,
    VIDEO,
    WIDTH,
    Draw,
    Entry,
    Inputs,
    by_whole_thousands,
)
from zoo.joint import ragged_mask
from zoo.wan import one_text

_BLOCKS = ("transformer_blocks",)
_DEPTHS = {"num_layers": 4}
_NUM_TOKENS = 2 * SIZE * SIZE
_COSMOS = {
    **CHANNELS,
    **HEADS,
    "text_embed_dim": TEXT_DIM,
    "adaln_lora_dim": 8,
    "max_size": (4, 16, 16),
    # Resizing the mask takes torchvision.
    "concat_padding_mask": False,
}
_SANA = {
    **CHANNELS,
    **HEADS,
    "num_cross_attention_heads": NUM_HEADS,
    "cross_attention_head_dim": HEAD_DIM,
    "cross_attention_dim": WIDTH,
    "caption_channels": TEXT_DIM,
    "sample_size": 2 * SIZE,
}


def _masked(draw: Draw) -> Inputs:
    return {**one_text(draw), "encoder_attention_mask": ragged_mask()[-1:]}


def _with_fps(draw: Draw) -> Inputs:
    return {**one_text(draw), "fps": 24}


def _cosmos_controls(draw: Draw) -> Inputs:
    """Two contexts to attend to, and controls for every second block."""
    num_controls = len(draw.model.transformer_blocks) // 2
    controls = [draw.normal(1, _NUM_TOKENS, WIDTH) for _ in range(num_controls)]
    contexts = (draw.text(1), draw.text(1, POOLED_DIM))
    texts = {"encoder_hidden_states": contexts, "block_controlnet_hidden_states": controls}
    return {**_with_fps(draw), **texts}


def _allegro(draw: Draw) -> Inputs:
    """A rotary table for each axis, and the positions of the tokens in them."""
    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(
        24, ((0, 0), (SIZE, SIZE)), (SIZE, SIZE), 2, (1.0, 1.0, 1.0)
    )
    positions = torch.cartesian_prod(t.long(), h.long(), w.long()).T.contiguous()
    axes = tuple(axis[None] for axis in positions)
    mask = {"attention_mask": ones(1, 2, 2 * SIZE, 2 * SIZE)}
    return {**_masked(draw), **mask, "image_rotary_emb": (tuple(tables), axes)}


def _ltx(draw: Draw) -> Inputs:
    return {**_masked(draw), "num_frames": 2, "height": SIZE, "width": SIZE}


def _refiner(draw: Draw) -> Inputs:
    rotary = (draw.normal(1, _NUM_TOKENS, WIDTH), draw.normal(1, _NUM_TOKENS, WIDTH))
    return {**_masked(draw), "video_rotary_emb": rotary}


def _camera(draw: Draw) -> Inputs:
    """A camera that moves straight ahead."""
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    poses[..., 2, 3] = arange(3) * 0.1
    lens = torch.tensor([SIZE, SIZE, SIZE / 2, SIZE / 2]).float().expand(1, 3, 4)
    return {
        "encoder_hidden_states": draw.normal(1, 1, NUM_TEXT_TOKENS, TEXT_DIM),
        "encoder_attention_mask": ones(1, NUM_TEXT_TOKENS, dtype=torch.int64),
        "camera_conditions": cat([poses.flatten(-2), lens], dim=-1),
        "chunk_plucker": draw.normal(1, NUM_CHANNELS, 3, SIZE, SIZE),
        "return_dict": False,
    }


def _of_each_frame(latents: Tensor, level: float) -> Inputs:
    """Cosmos Predict2: timesteps of the frames, from 1 down to 0."""
    return {"hidden_states": latents, "timestep": torch.full([1, 1, 2, 1, 1], level)}


def _frames_of_world(latents: Tensor, level: float) -> Inputs:
    return {"hidden_states": latents, "timestep": torch.full([1, 1, 3], 1000 * level)}


VIDEOS = (
    Entry(
        "cosmos1",
        CosmosTransformer3DModel,
        _COSMOS,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _with_fps,
        stride=0.0002,
    ),
    Entry(
        "cosmos2",
        CosmosTransformer3DModel,
        {**_COSMOS, "extra_pos_embed_type": None},
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _with_fps,
        _of_each_frame,
    ),
    Entry(
        "cosmos25_transfer",
        CosmosTransformer3DModel,
        {
            **_COSMOS,
            "extra_pos_embed_type": None,
            "controlnet_block_every_n": 2,
            "img_context_dim_in": POOLED_DIM,
            "img_context_dim_out": WIDTH,
        },
        {"num_layers": 6},
        _BLOCKS,
        VIDEO,
        _cosmos_controls,
        _of_each_frame,
    ),
    Entry(
        "allegro",
        AllegroTransformer3DModel,
        {
            **CHANNELS,
            "num_attention_heads": NUM_HEADS,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "sample_height": 2 * SIZE,
            "sample_width": 2 * SIZE,
            "sample_frames": 2,
            "caption_channels": TEXT_DIM,
        },
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _allegro,
        by_whole_thousands,
    ),
    Entry(
        "latte",
        LatteTransformer3DModel,
        {
            **CHANNELS,
            **HEADS,
            "cross_attention_dim": WIDTH,
            "sample_size": 2 * SIZE,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": TEXT_DIM,
            "video_length": 2,
        },
        _DEPTHS,
        ("transformer_blocks", "temporal_transformer_blocks"),
        VIDEO,
        one_text,
        by_whole_thousands,
    ),
    Entry(
        "ltx",
        LTXVideoTransformer3DModel,
        {**CHANNELS, **HEADS, "cross_attention_dim": WIDTH, "caption_channels": TEXT_DIM},
        _DEPTHS,
        _BLOCKS,
        (1, _NUM_TOKENS, NUM_CHANNELS),
        _ltx,
    ),
    Entry(
        "sana_video",
        SanaVideoTransformer3DModel,
        _SANA,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _masked,
    ),
    Entry(
        "sana_wm",
        SanaWMTransformer3DModel,
        {
            "in_channels": NUM_CHANNELS,
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "linear_head_dim": HEAD_DIM,
            "softmax_every_n": 2,
            "caption_channels": TEXT_DIM,
            "mlp_ratio": 2.0,
            "chunk_plucker_channels": NUM_CHANNELS,
        },
        _DEPTHS,
        ("blocks",),
        (1, NUM_CHANNELS, 3, SIZE, SIZE),
        _camera,
        _frames_of_world,
    ),
    Entry(
        "sana_wm_refiner",
        SanaWMLTX2RefinerTransformer3DModel,
        {
            **CHANNELS,
            **HEADS,
            "cross_attention_dim": WIDTH,
            "caption_channels": TEXT_DIM,
            "audio_num_attention_heads": NUM_HEADS,
            "audio_attention_head_dim": HEAD_DIM,
            "audio_cross_attention_dim": WIDTH,
        },
        _DEPTHS,
        _BLOCKS,
        (1, _NUM_TOKENS, NUM_CHANNELS),
        _refiner,
    ),
)
