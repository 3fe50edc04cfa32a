"""Models of sound beside video, and of several modalities in one sequence."""

import torch
from diffusers import Cosmos3OmniTransformer, LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3Transformer3DModel
from torch import Tensor, arange

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_HEADS, TEXT_DIM
from zoo.entry import CHANNELS, HEADS, NUM_TEXT_TOKENS, SIZE, WIDTH, Draw, Entry, Inputs
from zoo.joint import ragged_mask
from zoo.wan import one_text

_BLOCKS = ("transformer_blocks",)
_DEPTHS = {"num_layers": 4}
_NUM_TOKENS = 2 * SIZE * SIZE
_NUM_AUDIO = 9
_LTX2 = {
    **CHANNELS,
    **HEADS,
    "cross_attention_dim": WIDTH,
    "audio_in_channels": NUM_CHANNELS,
    "audio_out_channels": NUM_CHANNELS,
    "audio_num_attention_heads": NUM_HEADS,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": WIDTH // 2,
    "caption_channels": TEXT_DIM,
    "rope_double_precision": False,
}


def _masked(draw: Draw) -> Inputs:
    return {**one_text(draw), "encoder_attention_mask": ragged_mask()[-1:]}


def _ltx2(draw: Draw) -> Inputs:
    sound = {"audio_encoder_hidden_states": draw.text(1), "audio_num_frames": _NUM_AUDIO}
    size = {"num_frames": 2, "height": SIZE, "width": SIZE}
    return {**_masked(draw), **size, **sound, "audio_encoder_attention_mask": ragged_mask()[-1:]}


def _packed(draw: Draw) -> Inputs:
    """Text, then video tokens, in one sequence."""
    length = NUM_TEXT_TOKENS + _NUM_TOKENS
    video = arange(NUM_TEXT_TOKENS, length)
    return {
        "input_ids": draw.integers(32, NUM_TEXT_TOKENS),
        "text_indexes": arange(NUM_TEXT_TOKENS),
        "position_ids": arange(length).expand(3, -1).contiguous(),
        "und_len": NUM_TEXT_TOKENS,
        "sequence_length": length,
        "vision_token_shapes": [(2, SIZE, SIZE)],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_noisy_frame_indexes": [arange(2)],
        "return_dict": False,
    }


def _tagged(draw: Draw) -> Inputs:
    """Text, audio and video rows in one sequence, each told by tags and indices."""
    lengths = torch.tensor([NUM_TEXT_TOKENS, _NUM_AUDIO, _NUM_TOKENS])
    rows = arange(int(lengths.sum()))
    text, audio, video = rows.split(lengths.tolist())
    positions = torch.stack([rows, rows % SIZE, rows % 2], dim=1).float()
    return {
        **one_text(draw),
        "timestep_indices": torch.tensor([0, 1, 0]).repeat_interleave(lengths),
        "token_tags": torch.tensor([1, 2, 0]).repeat_interleave(lengths),
        "position_ids": positions,
        "text_indices": text,
        "audio_indices": audio,
        "video_indices": video,
    }


def _with_sound(latents: Tensor, level: float) -> Inputs:
    return {
        "hidden_states": latents[:, :_NUM_TOKENS],
        "audio_hidden_states": latents[:, _NUM_TOKENS:],
        "timestep": torch.full([1], 1000 * level),
    }


def _of_each_modality(latents: Tensor, level: float) -> Inputs:
    return {**_with_sound(latents, level), "timestep": torch.tensor([level, level / 2])}


def _of_each_token(latents: Tensor, level: float) -> Inputs:
    return {
        "vision_tokens": [latents],
        "vision_timesteps": torch.full([_NUM_TOKENS], 1000 * level),
    }


MULTIMODAL = (
    Entry(
        "ltx2",
        LTX2VideoTransformer3DModel,
        _LTX2,
        _DEPTHS,
        _BLOCKS,
        (1, _NUM_TOKENS + _NUM_AUDIO, NUM_CHANNELS),
        _ltx2,
        _with_sound,
    ),
    Entry(
        "cosmos3",
        Cosmos3OmniTransformer,
        {
            "head_dim": HEAD_DIM,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "latent_channel": NUM_CHANNELS,
            "num_attention_heads": NUM_HEADS,
            "num_key_value_heads": 1,
            "patch_latent_dim": 4 * NUM_CHANNELS,
            "vocab_size": 32,
            "rope_axes_dim": [4, 2, 2],
        },
        {"num_hidden_layers": 4},
        ("layers",),
        (1, NUM_CHANNELS, 2, 2 * SIZE, 2 * SIZE),
        _packed,
        _of_each_token,
    ),
    Entry(
        "minimax_h3",
        MiniMaxH3Transformer3DModel,
        {
            **HEADS,
            "hidden_size": WIDTH,
            "num_refiner_layers": 2,
            "ffn_dim": 2 * WIDTH,
            "in_channels": NUM_CHANNELS // 4,
            "audio_in_channels": NUM_CHANNELS,
            "text_dim": TEXT_DIM,
            "freq_dim": 16,
            "time_embed_hidden_dim": WIDTH,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        _DEPTHS,
        _BLOCKS,
        (1, _NUM_TOKENS + _NUM_AUDIO, NUM_CHANNELS),
        _tagged,
        _of_each_modality,
    ),
)
