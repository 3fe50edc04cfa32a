"""Wan and its relatives: one stream of video tokens that reads the text in every block."""

import torch
from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    ChronoEditTransformer3DModel,
    HeliosTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimate2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor, arange

from support.tiny_models import NUM_CHANNELS, NUM_HEADS, TEXT_DIM
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

_DEPTHS = {"num_layers": 4}
_BLOCKS = ("blocks",)
_SHORT = {**HEADS, **CHANNELS, "text_dim": TEXT_DIM, "ffn_dim": 2 * WIDTH}
_WAN = {**_SHORT, "rope_max_seq_len": 32}
_IMAGE_DIM = 20
_WITH_IMAGE = {**_WAN, "image_dim": _IMAGE_DIM, "added_kv_proj_dim": WIDTH}
_FAR = {**_WAN, "compressed_patch_size": (1, 4, 4), "full_chunk_limit": 3}
_FRAMES_FIRST = (1, 2, NUM_CHANNELS, 2 * SIZE, 2 * SIZE)
_ANIMATE = {
    **_WITH_IMAGE,
    "in_channels": 2 * NUM_CHANNELS + 4,
    "latent_channels": NUM_CHANNELS,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 3,
}
_ANIMATE2 = {
    "text_len": NUM_TEXT_TOKENS,
    "in_dim": 2 * NUM_CHANNELS + 4,
    "dim": WIDTH,
    "ffn_dim": 2 * WIDTH,
    "freq_dim": 16,
    "text_dim": TEXT_DIM,
    "out_dim": NUM_CHANNELS,
    "num_heads": NUM_HEADS,
    "use_img_emb": False,
}


def one_text(draw: Draw) -> Inputs:
    return {"encoder_hidden_states": draw.text(batch=1), "return_dict": False}


def _with_image(draw: Draw) -> Inputs:
    return {**one_text(draw), "encoder_hidden_states_image": draw.normal(1, 4, _IMAGE_DIM)}


def _controls(draw: Draw) -> Inputs:
    return {**one_text(draw), "control_hidden_states": draw.normal(1, 12, *VIDEO[2:])}


def _pose_and_face(draw: Draw) -> Inputs:
    """The pose has a frame less than the latents, whose first one is the character."""
    return {
        **_with_image(draw),
        "pose_hidden_states": draw.normal(1, NUM_CHANNELS, 2, 2 * SIZE, 2 * SIZE),
        "face_pixel_values": draw.normal(1, 3, 5, 16, 16),
    }


@torch.no_grad()
def _with_kept_reference(draw: Draw) -> Inputs:
    """The keys and values of the driving video come from a first call."""
    kept = WanAnimate2KVCache(len(draw.model.blocks))
    text = {"encoder_hidden_states": [draw.normal(NUM_TEXT_TOKENS, TEXT_DIM)], "kv_cache": kept}
    grid = torch.tensor([[2, SIZE, SIZE]])
    shape = (2, 2 * SIZE, 2 * SIZE)
    draw.model(
        **text,
        hidden_states=[draw.normal(NUM_CHANNELS, *shape)],
        condition_latents=[draw.normal(NUM_CHANNELS + 4, *shape)],
        timestep=torch.tensor([1.0]),
        kv_cache_mode="extract",
        seq_len=2 * SIZE * SIZE,
        offset_grid_sizes=grid,
    )
    return {
        **text,
        "condition_latents": [draw.normal(NUM_CHANNELS + 4, 3, 2 * SIZE, 2 * SIZE)],
        "kv_cache_mode": "cached",
        "seq_len": 3 * SIZE * SIZE,
        "reference_grid_sizes": grid,
        "origin_len": 5,
        "origin_area": [16 * SIZE, 16 * SIZE],
        "return_dict": False,
    }


def _history(draw: Draw) -> Inputs:
    """Earlier frames, the older the coarser."""
    size = (2 * SIZE, 2 * SIZE)
    return {
        **one_text(draw),
        "indices_hidden_states": arange(7, 9)[None],
        "latents_history_short": draw.normal(1, NUM_CHANNELS, 1, *size),
        "indices_latents_history_short": arange(6, 7)[None],
        "latents_history_mid": draw.normal(1, NUM_CHANNELS, 2, *size),
        "indices_latents_history_mid": arange(4, 6)[None],
        "latents_history_long": draw.normal(1, NUM_CHANNELS, 4, *size),
        "indices_latents_history_long": arange(0, 4)[None],
    }


def _chunks(draw: Draw) -> Inputs:
    return {**one_text(draw), "chunk_partition": [1, 1]}


def _for_each_token(latents: Tensor, level: float) -> Inputs:
    """Wan 2.2 5B: the first frame is the given image, at timestep 0."""
    timestep = torch.full([1, 2 * SIZE * SIZE], 1000 * level)
    timestep[:, : SIZE * SIZE] = 0
    return {"hidden_states": latents, "timestep": timestep}


def _for_each_frame(latents: Tensor, level: float) -> Inputs:
    timestep = torch.full([1, 2], round(1000 * level))
    return {"hidden_states": latents, "timestep": timestep, "enable_diffusion_forcing": True}


def _to_a_next(latents: Tensor, level: float) -> Inputs:
    """A flow map is told where the step goes."""
    timestep = torch.full([1, 2], 1000 * level)
    return {"hidden_states": latents, "timestep": timestep, "r_timestep": timestep - 1}


def _as_list(latents: Tensor, level: float) -> Inputs:
    return {"hidden_states": list(latents), "timestep": torch.full([len(latents)], 1000 * level)}


WAN_LIKE = (
    Entry(
        "wan",
        WanTransformer3DModel,
        _WAN,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        one_text,
        by_whole_thousands,
    ),
    Entry(
        "wan_i2v",
        WanTransformer3DModel,
        _WITH_IMAGE,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _with_image,
        by_whole_thousands,
    ),
    Entry(
        "wan_ti2v", WanTransformer3DModel, _WAN, _DEPTHS, _BLOCKS, VIDEO, one_text, _for_each_token
    ),
    Entry(
        "wan_vace",
        WanVACETransformer3DModel,
        {**_WAN, "vace_layers": [0, 2], "vace_in_channels": 12},
        {"num_layers": 6},
        _BLOCKS,
        VIDEO,
        _controls,
        by_whole_thousands,
    ),
    Entry(
        "wan_animate",
        WanAnimateTransformer3DModel,
        _ANIMATE,
        {"num_layers": 6},
        _BLOCKS,
        (1, 2 * NUM_CHANNELS + 4, 3, 2 * SIZE, 2 * SIZE),
        _pose_and_face,
        by_whole_thousands,
    ),
    Entry(
        "wan_animate2",
        WanAnimate2Transformer3DModel,
        _ANIMATE2,
        _DEPTHS,
        _BLOCKS,
        (1, NUM_CHANNELS, 3, 2 * SIZE, 2 * SIZE),
        _with_kept_reference,
        _as_list,
        breaks=True,
        refusal="graph break",
    ),
    Entry(
        "chrono_edit",
        ChronoEditTransformer3DModel,
        _WITH_IMAGE,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _with_image,
        by_whole_thousands,
    ),
    Entry(
        "sky_reels",
        SkyReelsV2Transformer3DModel,
        _WAN,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        one_text,
        by_whole_thousands,
    ),
    Entry(
        "sky_reels_forcing",
        SkyReelsV2Transformer3DModel,
        _WAN,
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        one_text,
        _for_each_frame,
    ),
    Entry(
        "any_flow",
        AnyFlowTransformer3DModel,
        _WAN,
        _DEPTHS,
        _BLOCKS,
        _FRAMES_FIRST,
        one_text,
        _to_a_next,
    ),
    Entry(
        "any_flow_far",
        AnyFlowFARTransformer3DModel,
        _FAR,
        _DEPTHS,
        _BLOCKS,
        _FRAMES_FIRST,
        _chunks,
        _to_a_next,
    ),
    Entry(
        "helios",
        HeliosTransformer3DModel,
        {**_SHORT, "rope_dim": (4, 6, 6)},
        _DEPTHS,
        _BLOCKS,
        VIDEO,
        _history,
        by_whole_thousands,
    ),
)
