"""What the scripts draw with: real pipelines of diffusers with small weights, and one own model.

cache-dit goes by the first letters of a pipeline's class and patches that class, so each pipeline
is of a class of its own.
"""

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    QwenImagePipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor, nn

from dit_cachegraph.demo.flux_scenes import SIDE_ARGUMENT, embed, load_pipeline, shipped_prompts
from support.tiny_models import build_qwen, build_wan
from support.tiny_pipelines import DEPTH, FAST_PIPELINES, no_encoders

NUM_STEPS = 20
_TINY = {tiny.name: tiny for tiny in FAST_PIPELINES}


def _of_its_own_class(kind: type, **components: object) -> DiffusionPipeline:
    own = type(kind.__name__, (kind,), {"__module__": __name__})
    pipe = own(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_flux() -> FluxPipeline:
    """The trained one that is shipped: 4 + 8 blocks."""
    return _of_its_own_class(FluxPipeline, **load_pipeline().components)


def flux_prompt(first: int = 0, num_steps: int = NUM_STEPS) -> dict[str, object]:
    """Two prompts, drawn together."""
    embeddings = embed(shipped_prompts()[first : first + 2])
    return {
        "prompt_embeds": embeddings,
        "pooled_prompt_embeds": embeddings.mean(1),
        "height": SIDE_ARGUMENT,
        "width": SIDE_ARGUMENT,
        "num_inference_steps": num_steps,
        "guidance_scale": 0.0,
        "generator": [torch.Generator().manual_seed(seed) for seed in (first, first + 1)],
        "output_type": "latent",
        "return_dict": False,
    }


def load_qwen() -> QwenImagePipeline:
    """6 blocks with random weights; guidance makes a call of its own at each step."""
    components = _TINY["qwen"].build().components
    return _of_its_own_class(QwenImagePipeline, **{**components, "transformer": build_qwen(DEPTH)})


def qwen_prompt() -> dict[str, object]:
    return {**_TINY["qwen"].arguments(0), "num_inference_steps": NUM_STEPS}


def load_wan22() -> WanPipeline:
    """Two transformers of 6 blocks: one for the first part of the noise, one for the rest."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _of_its_own_class(
        WanPipeline,
        vae=None,
        scheduler=scheduler,
        transformer=build_wan(DEPTH),
        transformer_2=build_wan(DEPTH, seed=1),
        boundary_ratio=0.7,
        **no_encoders("text_encoder", "tokenizer"),
    )


def wan_prompt() -> dict[str, object]:
    return {**_TINY["wan"].arguments(0), "num_inference_steps": NUM_STEPS}


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        return hidden_states + 0.3 * torch.tanh(self.linear(self.norm(hidden_states)) + temb)


class OwnTransformer(nn.Module):
    """A loop over 12 blocks of one stream."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time = nn.Linear(2, 16)
        self.blocks = nn.ModuleList(OwnBlock() for _ in range(12))
        self.out = nn.Linear(16, 16)
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        waves = torch.stack([torch.sin(timestep), torch.cos(timestep)], dim=-1)
        temb = self.time(waves)[:, None]
        for block in self.blocks:
            hidden_states = block(hidden_states, temb)
        return self.out(hidden_states)


@torch.no_grad()
def own_loop(transformer: nn.Module, num_steps: int = NUM_STEPS, seed: int = 0) -> Tensor:
    """The steps of an own sampler."""
    latents = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(seed))
    for i in range(num_steps):
        timestep = torch.full((2,), 1 - i / num_steps)
        latents = latents - transformer(latents, timestep) / (2 * num_steps)
    return latents
