"""Models with a block loop that are no denoisers of images or sound by themselves."""

import torch
from diffusers import PriorTransformer, Transformer2DModel, TransformerTemporalModel
from diffusers.models.transformers.minimax_music3_rvq_depth_decoder import (
    MiniMaxMusic3RVQDepthDecoder,
)
from diffusers.models.transformers.transformer_2d_dreamlite import DreamLiteTransformer2DModel
from diffusers.models.transformers.transformer_rfd4_proteina import RFD4ProteinaTransformer
from torch import Tensor, arange, ones, zeros

from support.tiny_models import NUM_CHANNELS, NUM_HEADS, TEXT_DIM
from zoo.entry import BATCH, HEADS, IMAGE, NUM_TEXT_TOKENS, SIZE, WIDTH, Draw, Entry, Inputs
from zoo.joint import ragged_mask, text

_BLOCKS = ("transformer_blocks",)
_DEPTHS = {"num_layers": 4}
_PLAIN = {**HEADS, "in_channels": NUM_CHANNELS, "norm_num_groups": 4}
_NUM_RESIDUES = 16


def _prior(draw: Draw) -> Inputs:
    mask = {"attention_mask": ragged_mask().bool()}
    return {**text(draw), **mask, "proj_embedding": draw.normal(BATCH, TEXT_DIM)}


def _by_number(latents: Tensor, level: float) -> Inputs:
    return {"hidden_states": latents, "timestep": torch.tensor(1000 * level)}


def _of_a_unet(latents: Tensor, level: float) -> Inputs:
    """The UNet around it embeds the timestep."""
    return {"hidden_states": latents}


def _nothing(draw: Draw) -> Inputs:
    return {}


def _one_frame_each(draw: Draw) -> Inputs:
    return {"num_frames": 2, "return_dict": False}


def _codes(latents: Tensor, level: float) -> Inputs:
    return {"inputs_embeds": latents}


def _protein(draw: Draw) -> Inputs:
    residues = arange(_NUM_RESIDUES).expand(BATCH, -1)
    pairs = (residues[:, :, None] - residues[:, None, :]).abs()
    conditioning = {
        "is_in_context_conditioning": zeros(BATCH, _NUM_RESIDUES, dtype=torch.bool),
        "supports_local_latent": ones(BATCH, _NUM_RESIDUES, dtype=torch.bool),
        "molecule_iid": residues // 8,
        "token_bond_path_length": pairs,
    }
    mask = ones(BATCH, _NUM_RESIDUES, dtype=torch.bool)
    return {"padding_mask": mask, "conditioning": conditioning, "return_dict": False}


def _of_a_molecule(latents: Tensor, level: float) -> Inputs:
    """The backbone's coordinates and the local latents have timesteps of their own."""
    rising = torch.full([len(latents)], 1 - level)
    return {
        "bb_ca": latents[..., :3],
        "local_latents": latents[..., 3:],
        "bb_ca_time": rising,
        "local_latents_time": rising.square(),
    }


OTHERS = (
    Entry(
        "prior",
        PriorTransformer,
        {
            **HEADS,
            "embedding_dim": TEXT_DIM,
            "num_embeddings": NUM_TEXT_TOKENS,
        },
        _DEPTHS,
        _BLOCKS,
        (BATCH, TEXT_DIM),
        _prior,
        _by_number,
    ),
    Entry(
        "transformer_2d",
        Transformer2DModel,
        {**_PLAIN, "cross_attention_dim": TEXT_DIM},
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        text,
        _of_a_unet,
    ),
    Entry(
        "dreamlite",
        DreamLiteTransformer2DModel,
        {**_PLAIN, "cross_attention_dim": TEXT_DIM},
        _DEPTHS,
        _BLOCKS,
        IMAGE,
        text,
        _of_a_unet,
    ),
    Entry(
        "transformer_temporal",
        TransformerTemporalModel,
        _PLAIN,
        _DEPTHS,
        _BLOCKS,
        (2 * BATCH, NUM_CHANNELS, SIZE, SIZE),
        _one_frame_each,
        _of_a_unet,
    ),
    Entry(
        "rvq_depth_decoder",
        MiniMaxMusic3RVQDepthDecoder,
        {
            "hidden_size": WIDTH,
            "num_attention_heads": NUM_HEADS,
            "intermediate_size": 2 * WIDTH,
            "audio_vocab_size": 16,
        },
        _DEPTHS,
        ("layers",),
        (BATCH, 8, WIDTH),
        _nothing,
        _codes,
    ),
    Entry(
        "proteina",
        RFD4ProteinaTransformer,
        {
            "token_dim": WIDTH,
            "nheads": NUM_HEADS,
            "dim_cond": 16,
            "pair_repr_dim": 16,
            "latent_dim": NUM_CHANNELS,
            "t_emb_dim": 16,
            "seq_sep_dim": 8,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents", "recycle_remaining"),
            "feats_pair_repr": (
                "xt_bb_ca_pair_dists",
                "molecule_idx_pair",
                "token_bond_path_length",
            ),
            "feats_pair_cond": ("time_emb_bb_ca", "time_emb_local_latents"),
            "tri_mult_c": 16,
            "num_sequence_classes": 8,
        },
        {"nlayers": 6},
        ("transformer_layers", "pair_update_layers"),
        (BATCH, _NUM_RESIDUES, 3 + NUM_CHANNELS),
        _protein,
        _of_a_molecule,
        stride=0.00005,
    ),
)
