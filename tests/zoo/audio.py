"""Models of sound alone."""

import torch
from diffusers import (
    StableAudioDiTModel,
    T5FilmDecoder,
)
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from diffusers.models.transformers.transformer_longcat_audio_dit import LongCatAudioDiTTransformer
from diffusers.models.transformers.transformer_minimax_music3 import (
    MiniMaxMusic3Transformer1DModel,
)
from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel
from torch import Tensor

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_HEADS, POOLED_DIM, TEXT_DIM
from zoo.entry import (
    BATCH,
    CHANNELS,
    HEADS,
    SIZE,
    WIDTH,
    Draw,
    Entry,
    Inputs,
    by_ones,
)
from zoo.joint import ragged_mask, text

_BLOCKS = ("transformer_blocks",)
_DEPTHS = {"num_layers": 4}
_NUM_TOKENS = 2 * SIZE * SIZE
_NUM_AUDIO = 9
_LENGTH = 32


def _ace_step(draw: Draw) -> Inputs:
    return {**text(draw), "context_latents": draw.normal(BATCH, _LENGTH, NUM_CHANNELS)}


def _two_timesteps(latents: Tensor, level: float) -> Inputs:
    return {**by_ones(latents, level), "timestep_r": torch.full([len(latents)], level)}


def _stable_audio(draw: Draw) -> Inputs:
    shape = (_LENGTH + 1, HEAD_DIM // 2)
    return {
        **text(draw),
        "global_hidden_states": draw.normal(BATCH, 1, POOLED_DIM),
        "rotary_embedding": (draw.normal(*shape), draw.normal(*shape)),
    }


def _stable_audio3(draw: Draw) -> Inputs:
    return {
        **text(draw),
        "global_hidden_states": draw.normal(BATCH, POOLED_DIM),
        "encoder_attention_mask": ragged_mask(),
        "local_add_cond": draw.normal(BATCH, NUM_CHANNELS, _LENGTH),
    }


def _masked_pair(draw: Draw) -> Inputs:
    return {**text(draw), "encoder_attention_mask": ragged_mask()}


def _frames(draw: Draw) -> Inputs:
    return {
        "encoder_hidden_states": draw.normal(BATCH, _LENGTH, TEXT_DIM),
        "return_dict": False,
    }


def _notes(draw: Draw) -> Inputs:
    return {"encodings_and_masks": [(draw.text(dim=WIDTH), ragged_mask())]}


def _of_a_spectrogram(latents: Tensor, level: float) -> Inputs:
    return {
        "decoder_input_tokens": latents,
        "decoder_noise_time": torch.full([len(latents)], level),
    }


AUDIO = (
    Entry(
        "ace_step",
        AceStepTransformer1DModel,
        {
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_attention_heads": NUM_HEADS,
            "num_key_value_heads": 1,
            "head_dim": HEAD_DIM,
            "in_channels": 2 * NUM_CHANNELS,
            "audio_acoustic_hidden_dim": NUM_CHANNELS,
            "encoder_hidden_size": TEXT_DIM,
            "sliding_window": 4,
        },
        {"num_hidden_layers": 4},
        ("layers",),
        (BATCH, _LENGTH, NUM_CHANNELS),
        _ace_step,
        _two_timesteps,
        stride=0.0002,
    ),
    Entry(
        "stable_audio",
        StableAudioDiTModel,
        {
            **CHANNELS,
            **HEADS,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": HEAD_DIM,
            "cross_attention_input_dim": TEXT_DIM,
            "global_states_input_dim": POOLED_DIM,
            "time_proj_dim": 16,
        },
        _DEPTHS,
        _BLOCKS,
        (BATCH, NUM_CHANNELS, _LENGTH),
        _stable_audio,
        by_ones,
    ),
    Entry(
        "stable_audio3",
        StableAudio3DiTModel,
        {
            "io_channels": NUM_CHANNELS,
            "embed_dim": 2 * WIDTH,
            "num_heads": NUM_HEADS,
            "cond_token_dim": TEXT_DIM,
            "global_cond_dim": POOLED_DIM,
            "local_add_cond_dim": NUM_CHANNELS,
            "timestep_features_dim": 16,
            "num_memory_tokens": 4,
        },
        {"depth": 4},
        _BLOCKS,
        (BATCH, NUM_CHANNELS, _LENGTH),
        _stable_audio3,
        by_ones,
    ),
    Entry(
        "longcat_audio",
        LongCatAudioDiTTransformer,
        {
            "dit_dim": WIDTH,
            "dit_heads": NUM_HEADS,
            "dit_text_dim": TEXT_DIM,
            "latent_dim": NUM_CHANNELS,
        },
        {"dit_depth": 4},
        ("blocks",),
        (BATCH, _LENGTH, NUM_CHANNELS),
        _masked_pair,
        by_ones,
        stride=0.0002,
    ),
    Entry(
        "minimax_music3",
        MiniMaxMusic3Transformer1DModel,
        {
            "in_channels": NUM_CHANNELS,
            "condition_dim": TEXT_DIM,
            "num_attention_heads": NUM_HEADS,
            "attention_head_dim": HEAD_DIM,
            "ff_inner_dim": 2 * WIDTH,
            "rotary_dim": 8,
            "fourier_embedding_dim": 16,
        },
        _DEPTHS,
        _BLOCKS,
        (BATCH, NUM_CHANNELS, _LENGTH),
        _frames,
        by_ones,
    ),
    Entry(
        "t5_film",
        T5FilmDecoder,
        {
            "input_dims": NUM_CHANNELS,
            "targets_length": _LENGTH,
            "d_model": WIDTH,
            "num_heads": NUM_HEADS,
            "d_kv": HEAD_DIM,
            "d_ff": 2 * WIDTH,
        },
        _DEPTHS,
        ("decoders",),
        (BATCH, _LENGTH, NUM_CHANNELS),
        _notes,
        _of_a_spectrogram,
        stride=0.0002,
    ),
)
