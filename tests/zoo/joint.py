"""Image models whose blocks carry the image and the text, as SD3 does."""

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    GlmImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)

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
    VIDEO,
    WIDTH,
    Draw,
    Entry,
    Inputs,
    by_ones,
)

_BLOCKS = ("transformer_blocks",)
_TWO_LISTS = ("transformer_blocks", "single_transformer_blocks")
_SD3 = {
    **CHANNELS,
    **HEADS,
    "sample_size": 16,
    "joint_attention_dim": TEXT_DIM,
    "caption_projection_dim": WIDTH,
    "pooled_projection_dim": POOLED_DIM,
    "pos_embed_max_size": 16,
}
_COGVIEW = {
    **CHANNELS,
    **HEADS,
    "text_embed_dim": TEXT_DIM,
    "time_embed_dim": 16,
    "condition_dim": 8,
}
_QWEN = {
    "in_channels": NUM_CHANNELS,
    "out_channels": NUM_CHANNELS // 4,
    **HEADS,
    **ROPE,
    "joint_attention_dim": TEXT_DIM,
}
_HUNYUAN = {
    **CHANNELS,
    **HEADS,
    "num_refiner_layers": 2,
    "patch_size": (2, 2),
    "text_embed_dim": TEXT_DIM,
    "rope_axes_dim": (8, 8),
}
_JOY = {
    "in_channels": NUM_CHANNELS,
    "hidden_size": WIDTH,
    "num_attention_heads": NUM_HEADS,
    "text_dim": TEXT_DIM,
    "rope_dim_list": list(ROPE_DIMS),
}


def text(draw: Draw) -> Inputs:
    return {"encoder_hidden_states": draw.text(), "return_dict": False}


def ragged_mask() -> torch.Tensor:
    """The last prompt of the batch is two tokens shorter."""
    mask = torch.ones(BATCH, NUM_TEXT_TOKENS, dtype=torch.int64)
    mask[-1, -2:] = 0
    return mask


def _sd3(draw: Draw) -> Inputs:
    return {**text(draw), "pooled_projections": draw.normal(BATCH, POOLED_DIM)}


def _sd3_controls(draw: Draw) -> Inputs:
    controls = [draw.normal(BATCH, SIZE * SIZE, WIDTH) for _ in range(2)]
    return {**_sd3(draw), "block_controlnet_hidden_states": controls}


def _sizes(draw: Draw) -> Inputs:
    size = torch.tensor([[64.0, 64.0]] * BATCH)
    sizes = {"original_size": size, "target_size": size, "crop_coords": torch.zeros(BATCH, 2)}
    return {**text(draw), **sizes}


def _glm(draw: Draw) -> Inputs:
    size = torch.tensor([[64.0, 64.0]] * BATCH)
    return {
        **text(draw),
        "prior_token_id": draw.integers(16, BATCH, SIZE * SIZE),
        "prior_token_drop": torch.zeros(BATCH, SIZE * SIZE, dtype=torch.bool),
        "target_size": size,
        "crop_coords": torch.zeros(BATCH, 2),
    }


def _qwen(draw: Draw) -> Inputs:
    mask = {"encoder_hidden_states_mask": ragged_mask()}
    return {**text(draw), **mask, "img_shapes": [[(1, SIZE, SIZE)]] * BATCH}


def _qwen_unmasked(draw: Draw) -> Inputs:
    return {**_qwen(draw), "encoder_hidden_states_mask": None}


def _qwen_controls(draw: Draw) -> Inputs:
    controls = [draw.normal(BATCH, SIZE * SIZE, WIDTH) for _ in range(2)]
    return {**_qwen(draw), "controlnet_block_samples": controls}


def _qwen_reference(draw: Draw) -> Inputs:
    """Edit 2511: the tokens of the picture that is edited follow and are modulated as at 0."""
    shapes = [[(1, SIZE, SIZE), (1, SIZE, SIZE)]] * BATCH
    return {**_qwen(draw), "img_shapes": shapes}


def _masked(draw: Draw) -> Inputs:
    return {**text(draw), "encoder_attention_mask": ragged_mask()}


def _two_encoders(draw: Draw) -> Inputs:
    return {
        **_masked(draw),
        "encoder_hidden_states_2": draw.text(dim=POOLED_DIM),
        "encoder_attention_mask_2": ragged_mask(),
    }


def _one_text(draw: Draw) -> Inputs:
    return {"encoder_hidden_states": draw.text(VIDEO[0]), "return_dict": False}


def _joy_plus(draw: Draw) -> Inputs:
    mask = {"encoder_hidden_states_mask": ragged_mask()}
    return {**text(draw), **mask, "shape_list": [[(1, SIZE, SIZE)]] * BATCH}


JOINT = (
    Entry("sd3", SD3Transformer2DModel, _SD3, {"num_layers": 4}, _BLOCKS, IMAGE, _sd3),
    Entry(
        "sd35",
        SD3Transformer2DModel,
        {**_SD3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        {"num_layers": 4},
        _BLOCKS,
        IMAGE,
        _sd3,
    ),
    Entry(
        "sd3_controlnet",
        SD3Transformer2DModel,
        _SD3,
        {"num_layers": 4},
        _BLOCKS,
        IMAGE,
        _sd3_controls,
    ),
    Entry(
        "auraflow",
        AuraFlowTransformer2DModel,
        {
            **CHANNELS,
            **HEADS,
            "sample_size": 8,
            "joint_attention_dim": TEXT_DIM,
            "caption_projection_dim": WIDTH,
            "pos_embed_max_size": 64,
        },
        {"num_mmdit_layers": 1, "num_single_dit_layers": 3},
        ("joint_transformer_blocks", "single_transformer_blocks"),
        IMAGE,
        text,
        by_ones,
    ),
    Entry(
        "cogview3plus",
        CogView3PlusTransformer2DModel,
        {**_COGVIEW, "sample_size": 8, "pos_embed_max_size": 8},
        {"num_layers": 4},
        _BLOCKS,
        IMAGE,
        _sizes,
    ),
    Entry(
        "cogview4",
        CogView4Transformer2DModel,
        {**_COGVIEW, "sample_size": 8, "rope_axes_dim": (8, 8)},
        {"num_layers": 4},
        _BLOCKS,
        IMAGE,
        _sizes,
    ),
    Entry(
        "glm_image",
        GlmImageTransformer2DModel,
        {**_COGVIEW, "prior_vq_quantizer_codebook_size": 16},
        {"num_layers": 4},
        _BLOCKS,
        IMAGE,
        _glm,
    ),
    Entry(
        "qwen_image",
        QwenImageTransformer2DModel,
        _QWEN,
        {"num_layers": 4},
        _BLOCKS,
        TOKENS,
        _qwen,
        by_ones,
    ),
    Entry(
        "qwen_image_unmasked",
        QwenImageTransformer2DModel,
        _QWEN,
        {"num_layers": 4},
        _BLOCKS,
        TOKENS,
        _qwen_unmasked,
        by_ones,
    ),
    Entry(
        "qwen_image_controlnet",
        QwenImageTransformer2DModel,
        _QWEN,
        {"num_layers": 4},
        _BLOCKS,
        TOKENS,
        _qwen_controls,
        by_ones,
    ),
    Entry(
        "qwen_image_edit",
        QwenImageTransformer2DModel,
        {**_QWEN, "zero_cond_t": True},
        {"num_layers": 4},
        _BLOCKS,
        (BATCH, 2 * SIZE * SIZE, NUM_CHANNELS),
        _qwen_reference,
        by_ones,
    ),
    Entry(
        "hunyuan_image",
        HunyuanImageTransformer2DModel,
        {**_HUNYUAN, "text_embed_2_dim": POOLED_DIM},
        {"num_layers": 1, "num_single_layers": 3},
        _TWO_LISTS,
        IMAGE,
        _two_encoders,
        breaks=True,
    ),
    Entry(
        "hunyuan_image_one_text",
        HunyuanImageTransformer2DModel,
        _HUNYUAN,
        {"num_layers": 1, "num_single_layers": 3},
        _TWO_LISTS,
        IMAGE,
        _masked,
    ),
    Entry(
        "joy_image",
        JoyImageEditTransformer3DModel,
        _JOY,
        {"num_layers": 4},
        ("double_blocks",),
        VIDEO,
        _one_text,
    ),
    Entry(
        "joy_image_plus",
        JoyImageEditPlusTransformer3DModel,
        _JOY,
        {"num_layers": 4},
        ("double_blocks",),
        (BATCH, SIZE * SIZE, NUM_CHANNELS, 1, 2, 2),
        _joy_plus,
    ),
)
