"""Further tiny pipelines, as in `tiny_pipelines`: those that take longer together."""

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from support.tiny_models import HEAD_DIM, NUM_CHANNELS, NUM_HEADS, ROPE_DIMS, TEXT_DIM, finish
from support.tiny_pipelines import DEPTH, TEXT_TOKENS, Arguments, Draw, TinyPipeline, no_encoders

WIDTH = NUM_HEADS * HEAD_DIM
_ENCODERS = no_encoders("text_encoder", "tokenizer")
_SIZE = {"height": 64, "width": 64}


def _two_prompts(seed: int) -> Arguments:
    draw = Draw(seed)
    return {"prompt_embeds": draw.text(), "negative_prompt_embeds": draw.text()}


def _two_masked_prompts(seed: int) -> Arguments:
    """Both padded to one length; the negative one is two tokens shorter."""
    masks = torch.ones(2, TEXT_TOKENS, dtype=torch.int64)
    masks[1, -2:] = 0
    return {
        **_two_prompts(seed),
        "prompt_attention_mask": masks[:1].clone(),
        "negative_prompt_attention_mask": masks[1:].clone(),
    }


def _ltx() -> DiffusionPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        num_layers=DEPTH,
        caption_channels=TEXT_DIM,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return LTXPipeline(scheduler, vae=None, transformer=finish(transformer, 0), **_ENCODERS)


def _ltx_arguments(seed: int) -> Arguments:
    return {**_two_masked_prompts(seed), "height": 128, "width": 128, "num_frames": 9}


def _cogvideox() -> DiffusionPipeline:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        time_embed_dim=16,
        text_embed_dim=TEXT_DIM,
        num_layers=DEPTH,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
    )
    scheduler = CogVideoXDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    return CogVideoXPipeline(
        vae=None, transformer=finish(transformer, 0), scheduler=scheduler, **_ENCODERS
    )


def _cogvideox_arguments(seed: int) -> Arguments:
    return {**_two_prompts(seed), **_SIZE, "num_frames": 5}


def _pixart() -> DiffusionPipeline:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=HEAD_DIM,
        in_channels=NUM_CHANNELS,
        out_channels=2 * NUM_CHANNELS,
        num_layers=DEPTH,
        cross_attention_dim=3 * HEAD_DIM,
        sample_size=128,
        caption_channels=TEXT_DIM,
    )
    scheduler = DPMSolverMultistepScheduler()
    return PixArtAlphaPipeline(
        vae=None, transformer=finish(transformer, 0), scheduler=scheduler, **_ENCODERS
    )


def _pixart_arguments(seed: int) -> Arguments:
    return {
        **_two_masked_prompts(seed),
        **_SIZE,
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def _sana() -> DiffusionPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=DEPTH,
        num_cross_attention_heads=NUM_HEADS,
        cross_attention_head_dim=HEAD_DIM,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_DIM,
        sample_size=4,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(
        vae=None, transformer=finish(transformer, 0), scheduler=scheduler, **_ENCODERS
    )


def _sana_arguments(seed: int) -> Arguments:
    return {
        **_two_masked_prompts(seed),
        "negative_prompt": None,
        "height": 128,
        "width": 128,
        "use_resolution_binning": False,
    }


def _hunyuandit() -> DiffusionPipeline:
    transformer = HunyuanDiT2DModel(
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=NUM_CHANNELS,
        patch_size=2,
        sample_size=8,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        cross_attention_dim=TEXT_DIM,
        cross_attention_dim_t5=TEXT_DIM,
        pooled_projection_dim=16,
        text_len=TEXT_TOKENS,
        text_len_t5=TEXT_TOKENS,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        clip_sample=False,
    )
    return HunyuanDiTPipeline(
        vae=None,
        transformer=finish(transformer, 0),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_ENCODERS,
    )


def _hunyuandit_arguments(seed: int) -> Arguments:
    first, second = _two_masked_prompts(seed), _two_masked_prompts(seed + 500)
    return {
        **first,
        "prompt_embeds_2": second["prompt_embeds"],
        "negative_prompt_embeds_2": second["negative_prompt_embeds"],
        "prompt_attention_mask_2": second["prompt_attention_mask"],
        "negative_prompt_attention_mask_2": second["negative_prompt_attention_mask"],
        **_SIZE,
        "use_resolution_binning": False,
    }


def _auraflow() -> DiffusionPipeline:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        num_mmdit_layers=2,
        num_single_dit_layers=DEPTH - 2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=WIDTH,
        pos_embed_max_size=16,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    return AuraFlowPipeline(
        vae=None, transformer=finish(transformer, 0), scheduler=scheduler, **_ENCODERS
    )


def _auraflow_arguments(seed: int) -> Arguments:
    return {**_two_masked_prompts(seed), **_SIZE}


def _chroma() -> DiffusionPipeline:
    transformer = ChromaTransformer2DModel(
        in_channels=NUM_CHANNELS,
        num_layers=2,
        num_single_layers=DEPTH - 2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=ROPE_DIMS,
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_beta_sigmas=False)
    return ChromaPipeline(scheduler, vae=None, transformer=finish(transformer, 0), **_ENCODERS)


def _chroma_arguments(seed: int) -> Arguments:
    arguments = _two_masked_prompts(seed)
    for name in ("prompt_attention_mask", "negative_prompt_attention_mask"):
        arguments[name] = arguments[name].float()
    return {**arguments, **_SIZE}


MORE_PIPELINES = (
    TinyPipeline("ltx", _ltx, _ltx_arguments),
    TinyPipeline("cogvideox", _cogvideox, _cogvideox_arguments),
    TinyPipeline("pixart", _pixart, _pixart_arguments),
    TinyPipeline("sana", _sana, _sana_arguments),
    TinyPipeline("hunyuandit", _hunyuandit, _hunyuandit_arguments),
    TinyPipeline("auraflow", _auraflow, _auraflow_arguments),
    TinyPipeline("chroma", _chroma, _chroma_arguments, num_branches=2),
)
