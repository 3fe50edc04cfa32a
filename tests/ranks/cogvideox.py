"""CogVideoX over tokens: diffusers has no plan for it, and its attention asks no other rank. So the
caller brings both: a plan, and a processor that goes through diffusers' dispatcher."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed
from torch import Tensor, nn

from support.tiny_models import Inputs, TinyModel, finish

CHANNELS, TEXT_DIM, NUM_FRAMES = 4, 24, 2
HEAD_DIM = 16
TOKENS = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)
PLACES = ContextParallelInput(split_dim=0, expected_dims=2, split_output=False)
PLAN = {
    "": {"image_rotary_emb": [PLACES, PLACES]},
    "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS},
    "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
}


class SharingProcessor:
    """That of CogVideoX, over the tokens of all ranks, each of which rotates its own."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        num_text_tokens = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(joint).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (
            rotated(normed, num_text_tokens, image_rotary_emb)
            for normed in (attn.norm_q(query), attn.norm_k(key))
        )
        joint = dispatch_attention_fn(
            query,
            key,
            value,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        joint = attn.to_out[1](attn.to_out[0](joint.flatten(2)))
        return joint[:, num_text_tokens:], joint[:, :num_text_tokens]


def rotated(joint: Tensor, num_text_tokens: int, places: Sequence[Tensor] | None) -> Tensor:
    """[batch, tokens, heads, channels], of which text has no place."""
    if places is None:
        return joint
    text, image = joint[:, :num_text_tokens], joint[:, num_text_tokens:]
    return torch.cat([text, apply_rotary_emb(image, tuple(places), sequence_dim=1)], dim=1)


def build(depth: int, *, is_rotary: bool = False) -> nn.Module:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=16,
        text_embed_dim=TEXT_DIM,
        num_layers=depth,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=is_rotary,
    )
    return finish(model, 0)


def make_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": normal(batch, NUM_FRAMES, CHANNELS, 2 * size, 2 * size),
        "timestep": torch.full((batch,), 999),
        "encoder_hidden_states": normal(batch, text_tokens, TEXT_DIM),
        "image_rotary_emb": None,
        "return_dict": False,
    }


def make_rotary_inputs(
    model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int
) -> Inputs:
    inputs = make_inputs(model, batch=batch, size=size, text_tokens=text_tokens, seed=seed)
    grid = (size, size)
    places = get_3d_rotary_pos_embed(HEAD_DIM, ((0, 0), grid), grid, NUM_FRAMES)
    return inputs | {"image_rotary_emb": places}


COGVIDEOX = TinyModel(
    "cogvideox",
    build,
    make_inputs,
    ("transformer_blocks",),
    {"transformer_blocks": ("hidden_states", "encoder_hidden_states")},
    torch.int64,
)
ROTARY = replace(
    COGVIDEOX,
    name="cogvideox, rotary",
    build=partial(build, is_rotary=True),
    make_inputs=make_rotary_inputs,
)
