"""FLUX and its relatives: double blocks of two streams, then single blocks of them joined."""

from diffusers import (
    BriaFibo2Transformer2DModel,
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from torch import full, ones, zeros

from support.tiny_models import NUM_CHANNELS, POOLED_DIM, TEXT_DIM
from zoo.entry import (
    BATCH,
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
    grid_ids,
)

_TWO_LISTS = ("transformer_blocks", "single_transformer_blocks")
_DEPTHS = {"num_layers": 1, "num_single_layers": 3}
_CONFIG = {"in_channels": NUM_CHANNELS, **HEADS, **ROPE, "joint_attention_dim": TEXT_DIM}
_POOLED = {"pooled_projection_dim": POOLED_DIM}
_FOUR_AXES = {"axes_dims_rope": (4, 4, 4, 4)}


def _text_and_ids(draw: Draw) -> Inputs:
    ids = {"img_ids": grid_ids(), "txt_ids": zeros(NUM_TEXT_TOKENS, 3)}
    return {"encoder_hidden_states": draw.text(), **ids, "return_dict": False}


def _four_axes(draw: Draw) -> Inputs:
    ids = {"img_ids": grid_ids(num_axes=4), "txt_ids": zeros(NUM_TEXT_TOKENS, 4)}
    return {"encoder_hidden_states": draw.text(), **ids, "return_dict": False}


def _with_reference(draw: Draw) -> Inputs:
    tokens = draw.normal(BATCH, 9, NUM_CHANNELS)
    ids = grid_ids(3, num_axes=4)
    return {**_four_axes(draw), "image_cond_hidden_states": tokens, "image_cond_ids": ids}


def _pooled(draw: Draw) -> Inputs:
    return {**_text_and_ids(draw), "pooled_projections": draw.normal(BATCH, POOLED_DIM)}


def _guided(draw: Draw) -> Inputs:
    return {**_pooled(draw), "guidance": full([BATCH], 3.5)}


def _flux_controls(draw: Draw) -> Inputs:
    shape = (BATCH, SIZE * SIZE, WIDTH)
    return {
        **_pooled(draw),
        "controlnet_block_samples": [draw.normal(*shape)],
        "controlnet_single_block_samples": [draw.normal(*shape), draw.normal(*shape)],
    }


def _chroma_mask(draw: Draw) -> Inputs:
    mask = ones(BATCH, NUM_TEXT_TOKENS + SIZE * SIZE)
    mask[-1, :2] = 0
    return {**_text_and_ids(draw), "attention_mask": mask}


def _text_layers(draw: Draw) -> Inputs:
    """One layer of the text encoder for every block."""
    layers = [draw.text(dim=WIDTH // 2) for _ in draw.model.caption_projection]
    return {**_text_and_ids(draw), "text_encoder_layers": layers}


def _text_bundles(draw: Draw) -> Inputs:
    """A bundle for the perceiver and one for each block that injects one."""
    bundles = draw.normal(BATCH, 3, NUM_TEXT_TOKENS, TEXT_DIM)
    return {"encoder_hidden_states": bundles, "return_dict": False}


_CHROMA = {
    **_CONFIG,
    "approximator_num_channels": 8,
    "approximator_hidden_dim": WIDTH,
    "approximator_layers": 2,
}
_FIBO2 = {
    "in_channels": NUM_CHANNELS,
    "dim": WIDTH,
    "n_heads": 2,
    "n_refiner_layers": 2,
    "cap_feat_dim": TEXT_DIM,
    "injection_layer_ids": (1, 3),
    "perceiver_num_layers": 2,
    "min_num_gist_tokens": 4,
    "max_num_gist_tokens": 8,
    "gist_step": 4,
    "gist_min_text_len": 2,
    "gist_max_text_len": 8,
    "axes_dims": (4, 6, 6),
    "axes_lens": (16, 16, 16),
}

FLUX_LIKE = (
    Entry(
        "flux",
        FluxTransformer2DModel,
        {**_CONFIG, **_POOLED},
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _pooled,
        by_ones,
    ),
    Entry(
        "flux_guided",
        FluxTransformer2DModel,
        {**_CONFIG, **_POOLED, "guidance_embeds": True},
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _guided,
        by_ones,
    ),
    Entry(
        "flux_fill",
        FluxTransformer2DModel,
        {**_CONFIG, **_POOLED, "in_channels": 2 * NUM_CHANNELS, "out_channels": NUM_CHANNELS},
        _DEPTHS,
        _TWO_LISTS,
        (BATCH, SIZE * SIZE, 2 * NUM_CHANNELS),
        _pooled,
        by_ones,
    ),
    Entry(
        "flux_controlnet",
        FluxTransformer2DModel,
        {**_CONFIG, **_POOLED},
        {"num_layers": 2, "num_single_layers": 4},
        _TWO_LISTS,
        TOKENS,
        _flux_controls,
        by_ones,
    ),
    Entry(
        "flux2",
        Flux2Transformer2DModel,
        {**_CONFIG, **_FOUR_AXES, "guidance_embeds": False},
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _four_axes,
        by_ones,
    ),
    Entry(
        "flux3",
        Flux3Transformer2DModel,
        {**_CONFIG, **_FOUR_AXES},
        {"num_layers": 1, "num_single_layers": 4},
        ("mode_blocks.image", "single_transformer_blocks"),
        TOKENS,
        _four_axes,
        by_ones,
    ),
    Entry(
        "flux3_reference",
        Flux3Transformer2DModel,
        {**_CONFIG, **_FOUR_AXES, "cond_in_channels": NUM_CHANNELS},
        {"num_layers": 1, "num_single_layers": 4},
        ("mode_blocks.image", "single_transformer_blocks"),
        TOKENS,
        _with_reference,
        by_ones,
    ),
    Entry(
        "chroma",
        ChromaTransformer2DModel,
        _CHROMA,
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _chroma_mask,
        by_ones,
        stride=0.00005,
    ),
    Entry(
        "bria",
        BriaTransformer2DModel,
        _CONFIG,
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _text_and_ids,
    ),
    Entry(
        "bria_fibo",
        BriaFiboTransformer2DModel,
        {**_CONFIG, "text_encoder_dim": WIDTH // 2},
        {"num_layers": 2, "num_single_layers": 4},
        _TWO_LISTS,
        TOKENS,
        _text_layers,
    ),
    Entry(
        "bria_fibo2",
        BriaFibo2Transformer2DModel,
        _FIBO2,
        {"n_layers": 5},
        ("layers",),
        IMAGE,
        _text_bundles,
        by_ones,
        stride=0.0002,
    ),
    Entry(
        "longcat_image",
        LongCatImageTransformer2DModel,
        {**_CONFIG, **_POOLED},
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _text_and_ids,
        by_ones,
    ),
    Entry(
        "ovis_image",
        OvisImageTransformer2DModel,
        {**_CONFIG, "out_channels": NUM_CHANNELS},
        _DEPTHS,
        _TWO_LISTS,
        TOKENS,
        _text_and_ids,
        by_ones,
    ),
)
