"""Tiny but real diffusers pipelines, with the arguments of a call made for them.

Text encoders are left out: a call brings prompt embeddings, as a server that encodes elsewhere
does. VAEs too, where the pipeline encodes no picture. All draw 4 x 4 tokens a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor, nn

from support.tiny_models import (
    HEAD_DIM,
    NUM_CHANNELS,
    NUM_HEADS,
    POOLED_DIM,
    ROPE_DIMS,
    TEXT_DIM,
    build_flux,
    build_qwen,
    build_sd3,
    build_wan,
    finish,
)

DEPTH = 6
NUM_STEPS = 10
TEXT_TOKENS = 6

Arguments = dict[str, object]


@dataclass(frozen=True)
class TinyPipeline:
    """A tiny pipeline and how to call it.

    build(): the pipeline, with equal weights at every call.
    make_arguments(seed): kwargs of one call, all tensors new.
    num_branches: how many passes guidance takes at a step.
    num_steps: how many of the NUM_STEPS steps that are asked for are made.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    make_arguments: Callable[[int], Arguments]
    num_branches: int = 1
    num_steps: int = NUM_STEPS

    def arguments(self, seed: int) -> Arguments:
        """Those of one call, noise included."""
        return {
            **self.make_arguments(seed),
            "num_inference_steps": NUM_STEPS,
            "generator": torch.Generator().manual_seed(seed),
            "output_type": "latent",
            "return_dict": False,
        }


class Draw:
    """Seeded normal tensors."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 + seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def picture(self) -> Tensor:
        return torch.rand(1, 3, 8, 8, generator=self.generator)

    def text(self, tokens: int = TEXT_TOKENS) -> Tensor:
        return self.normal(1, tokens, TEXT_DIM)


def no_encoders(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


_FLUX_ENCODERS = no_encoders("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
_FLUX_SIZE = {"height": 64, "width": 64}


def _flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _flux_prompt(seed: int) -> Arguments:
    draw = Draw(seed)
    return {"prompt_embeds": draw.text(), "pooled_prompt_embeds": draw.normal(1, POOLED_DIM)}


def _flux() -> DiffusionPipeline:
    transformer = build_flux(2, DEPTH - 2)
    return FluxPipeline(_flux_scheduler(), vae=None, transformer=transformer, **_FLUX_ENCODERS)


def _flux_arguments(seed: int) -> Arguments:
    return {**_flux_prompt(seed), **_FLUX_SIZE, "guidance_scale": 3.5}


def tiny_vae() -> nn.Module:
    """Encodes pictures pixel by pixel: two channels a latent pixel, four latent pixels a token."""
    vae = AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=NUM_CHANNELS // 4,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=8,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    return finish(vae, seed=1)


def _flux_img2img() -> DiffusionPipeline:
    transformer = build_flux(2, DEPTH - 2)
    return FluxImg2ImgPipeline(
        _flux_scheduler(), vae=tiny_vae(), transformer=transformer, **_FLUX_ENCODERS
    )


def _flux_img2img_arguments(seed: int) -> Arguments:
    """A strength of 0.8 leaves eight steps of ten."""
    image = Draw(seed).picture()
    size = {"height": 8, "width": 8}
    return {**_flux_prompt(seed), **size, "image": image, "strength": 0.8}


def _controlnet() -> nn.Module:
    model = FluxControlNetModel(
        in_channels=NUM_CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=True,
        axes_dims_rope=ROPE_DIMS,
    )
    return finish(model, seed=2)


def _flux_controlnet() -> DiffusionPipeline:
    return FluxControlNetPipeline(
        _flux_scheduler(),
        vae=tiny_vae(),
        transformer=build_flux(2, DEPTH - 2),
        controlnet=_controlnet(),
        **_FLUX_ENCODERS,
    )


def _flux_controlnet_arguments(seed: int) -> Arguments:
    image = Draw(seed).picture()
    size = {"height": 8, "width": 8}
    return {
        **_flux_prompt(seed),
        **size,
        "control_image": image,
        "controlnet_conditioning_scale": 0.3,
    }


def _sd3() -> DiffusionPipeline:
    encoders = no_encoders(
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "text_encoder_3",
        "tokenizer_3",
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(build_sd3(DEPTH), scheduler, vae=None, **encoders)


def _sd3_arguments(seed: int) -> Arguments:
    draw = Draw(seed)
    return {
        "prompt_embeds": draw.text(),
        "pooled_prompt_embeds": draw.normal(1, POOLED_DIM),
        "negative_prompt_embeds": draw.text(),
        "negative_pooled_prompt_embeds": draw.normal(1, POOLED_DIM),
        "height": 64,
        "width": 64,
    }


def _wan() -> DiffusionPipeline:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    encoders = no_encoders("text_encoder", "tokenizer")
    return WanPipeline(vae=None, scheduler=scheduler, transformer=build_wan(DEPTH), **encoders)


def _wan_arguments(seed: int) -> Arguments:
    """Two latent frames."""
    draw = Draw(seed)
    return {
        "prompt_embeds": draw.text(),
        "negative_prompt_embeds": draw.text(),
        "height": 64,
        "width": 64,
        "num_frames": 5,
    }


def _qwen() -> DiffusionPipeline:
    encoders = no_encoders("text_encoder", "tokenizer")
    return QwenImagePipeline(_flux_scheduler(), vae=None, transformer=build_qwen(DEPTH), **encoders)


def _qwen_arguments(seed: int) -> Arguments:
    """Prompts come without padding, so the two passes differ in length."""
    draw = Draw(seed)
    return {
        "prompt_embeds": draw.text(),
        "prompt_embeds_mask": torch.ones(1, TEXT_TOKENS, dtype=torch.int64),
        "negative_prompt_embeds": draw.text(TEXT_TOKENS - 2),
        "negative_prompt_embeds_mask": torch.ones(1, TEXT_TOKENS - 2, dtype=torch.int64),
        "true_cfg_scale": 3.0,
        "height": 64,
        "width": 64,
    }


def _lumina2() -> DiffusionPipeline:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=NUM_CHANNELS,
        hidden_size=NUM_HEADS * HEAD_DIM,
        num_layers=DEPTH,
        num_refiner_layers=1,
        num_attention_heads=NUM_HEADS,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=ROPE_DIMS,
        axes_lens=(32, 32, 32),
        cap_feat_dim=TEXT_DIM,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    encoders = no_encoders("text_encoder", "tokenizer")
    return Lumina2Pipeline(finish(transformer, 0), scheduler, vae=None, **encoders)


def _lumina2_arguments(seed: int) -> Arguments:
    """Prompts are padded to one length."""
    draw = Draw(seed)
    mask, shorter = torch.ones(2, 1, TEXT_TOKENS, dtype=torch.int64)
    shorter[:, -2:] = 0
    return {
        "prompt_embeds": draw.text(),
        "prompt_attention_mask": mask.clone(),
        "negative_prompt_embeds": draw.text(),
        "negative_prompt_attention_mask": shorter.clone(),
        "height": 64,
        "width": 64,
    }


FAST_PIPELINES = (
    TinyPipeline("flux", _flux, _flux_arguments),
    TinyPipeline("sd3", _sd3, _sd3_arguments),
    TinyPipeline("wan", _wan, _wan_arguments, num_branches=2),
    TinyPipeline("qwen", _qwen, _qwen_arguments, num_branches=2),
    TinyPipeline("lumina2", _lumina2, _lumina2_arguments, num_branches=2),
    TinyPipeline("flux_img2img", _flux_img2img, _flux_img2img_arguments, num_steps=8),
    TinyPipeline("flux_controlnet", _flux_controlnet, _flux_controlnet_arguments),
)
