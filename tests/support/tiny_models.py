"""Tiny but real diffusers transformers, with inputs and denoising loops made for them.

Sizes are counted in patches, so that `size=4` is an image of 4 x 4 = 16 tokens in every model.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from dit_cachegraph.testing.run import redraw

NUM_CHANNELS = 8
TEXT_DIM = 24
POOLED_DIM = 20
NUM_HEADS = 2
HEAD_DIM = 16
ROPE_DIMS = (4, 6, 6)
NUM_CLASSES = 10
# In timesteps: faster waves of the timestep's embedding are damped, because a random model that
# sees them as loudly as the slow ones answers every step with an unrelated residual.
SHORTEST_WAVE = 600.0

Inputs = dict[str, object]


@dataclass(frozen=True)
class TinyModel:
    """A tiny transformer and how to call it.

    build(depth): the model with `depth` blocks in all.
    make_inputs(model, *, batch, size, text_tokens, seed): kwargs of the first step, with the
    latents under "hidden_states".
    block_lists: names of the ModuleLists, in call order.
    stream_outputs: what the blocks of each list return, by argument name.
    timestep_dtype, timestep_divisor: the scheduler's timesteps (1000 to 0) are of this type, and
    the pipeline divides them by this before it calls the model.
    """

    name: str
    build: Callable[[int], nn.Module]
    make_inputs: Callable[..., Inputs]
    block_lists: tuple[str, ...]
    stream_outputs: Mapping[str, tuple[str, ...]]
    timestep_dtype: torch.dtype = torch.float32
    timestep_divisor: int = 1


def at_step(inputs: Inputs, latents: Tensor, timestep: Tensor) -> Inputs:
    """Kwargs of another step of the same image: the very same conditioning objects."""
    return {**inputs, "hidden_states": latents, "timestep": timestep}


def trajectory(
    tiny: TinyModel, inputs: Inputs, num_steps: int, seed: int = 0, scale: float = 0.8
) -> Iterator[Inputs]:
    """Kwargs of each step of a denoising loop whose latents do not depend on the model.

    The latents go straight from those of `inputs` towards seeded others, and the timestep always
    falls, in strides of very unequal length, from 999 by about `scale` of the whole way to 0.
    """
    start = inputs["hidden_states"]
    assert isinstance(start, Tensor)
    # The latents of `inputs` may have been drawn from `seed` as well.
    generator = torch.Generator().manual_seed(10_000 + seed)
    end = torch.randn(start.shape, generator=generator).to(start)
    strides = torch.exp(torch.empty(num_steps).uniform_(-2.2, 2.2, generator=generator))
    # Whole timesteps, where a model wants them, must fall as well, hence strides of at least one.
    strides = torch.clamp(strides * (scale * 999 / strides.sum()), min=1)
    exact = 999 - torch.cumsum(strides, 0) + strides[0]
    timesteps = exact.to(device=start.device, dtype=tiny.timestep_dtype)
    for level, timestep in zip(exact.tolist(), timesteps, strict=True):
        latents = torch.lerp(start, end, 1 - level / 999)
        yield at_step(inputs, latents, _as_passed(timestep, latents, tiny.timestep_divisor))


def _as_passed(timestep: Tensor, latents: Tensor, divisor: int) -> Tensor:
    # Pipelines expand a view of the scheduler's timesteps, so strides of 0 and offsets are real;
    # those that divide also cast to the latents' type first.
    expanded = timestep.expand(len(latents))
    return expanded if divisor == 1 else expanded.to(latents.dtype) / divisor


@torch.no_grad()
def finish(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a seeded value under which every block matters."""
    redraw(model, seed)
    for module in model.modules():
        if isinstance(module, TimestepEmbedding):
            _damp_fast_waves(module.linear_1.weight)
    return model.eval().requires_grad_(False)


def _damp_fast_waves(weight: Tensor) -> None:
    """Scale the columns of `weight` (dim, cosines then sines) by their wave's length."""
    num_waves = weight.shape[1] // 2
    wave_length = 2 * math.pi * 10000 ** (torch.arange(num_waves) / num_waves)
    weight.mul_(torch.clamp(wave_length / SHORTEST_WAVE, max=1).repeat(2))


class _Draw:
    """Seeded normal tensors with the dtype and device of a model."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.like = next(model.parameters())
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.like)

    def timestep(self, batch: int, dtype: torch.dtype, divisor: int) -> Tensor:
        first = torch.tensor(999, dtype=dtype, device=self.like.device)
        return _as_passed(first, self.like.new_empty(batch), divisor)


def build_flux(num_double: int, num_single: int, seed: int = 0) -> nn.Module:
    model = FluxTransformer2DModel(
        in_channels=NUM_CHANNELS,
        num_layers=num_double,
        num_single_layers=num_single,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        guidance_embeds=True,
        axes_dims_rope=ROPE_DIMS,
    )
    return finish(model, seed)


def _flux_of_depth(depth: int) -> nn.Module:
    num_double = max(1, depth // 3)
    return build_flux(num_double, depth - num_double)


def _flux_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    draw = _Draw(model, seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image_ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return {
        "hidden_states": draw.normal(batch, size * size, NUM_CHANNELS),
        "timestep": draw.timestep(batch, torch.float32, 1000),
        "guidance": torch.full([1], 3.5, device=draw.like.device).expand(batch),
        "pooled_projections": draw.normal(batch, POOLED_DIM),
        "encoder_hidden_states": draw.normal(batch, text_tokens, TEXT_DIM),
        "txt_ids": torch.zeros(text_tokens, 3).to(draw.like),
        "img_ids": image_ids.to(draw.like),
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def build_sd3(depth: int, num_dual: int = 0, seed: int = 0) -> nn.Module:
    """The last block drops the text stream; the first `num_dual` have a second attention."""
    model = SD3Transformer2DModel(
        sample_size=16,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        num_layers=depth,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=NUM_HEADS * HEAD_DIM,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=16,
        dual_attention_layers=tuple(range(num_dual)),
        qk_norm="rms_norm" if num_dual else None,
    )
    return finish(model, seed)


def _sd35_of_depth(depth: int) -> nn.Module:
    return build_sd3(depth, num_dual=max(1, depth // 2))


def _sd3_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    draw = _Draw(model, seed)
    return {
        "hidden_states": draw.normal(batch, NUM_CHANNELS, 2 * size, 2 * size),
        "timestep": draw.timestep(batch, torch.float32, 1),
        "encoder_hidden_states": draw.normal(batch, text_tokens, TEXT_DIM),
        "pooled_projections": draw.normal(batch, POOLED_DIM),
        "joint_attention_kwargs": None,
        "return_dict": False,
    }


def build_wan(depth: int, seed: int = 0) -> nn.Module:
    model = WanTransformer3DModel(
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS,
        text_dim=TEXT_DIM,
        ffn_dim=64,
        num_layers=depth,
        rope_max_seq_len=32,
    )
    return finish(model, seed)


def _wan_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    """Two frames, so that there are 2 * size * size tokens."""
    draw = _Draw(model, seed)
    return {
        "hidden_states": draw.normal(batch, NUM_CHANNELS, 2, 2 * size, 2 * size),
        "timestep": draw.timestep(batch, torch.int64, 1),
        "encoder_hidden_states": draw.normal(batch, text_tokens, TEXT_DIM),
        "attention_kwargs": None,
        "return_dict": False,
    }


def build_qwen(depth: int, seed: int = 0) -> nn.Module:
    model = QwenImageTransformer2DModel(
        in_channels=NUM_CHANNELS,
        out_channels=NUM_CHANNELS // 4,
        num_layers=depth,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=NUM_HEADS,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=ROPE_DIMS,
    )
    return finish(model, seed)


def _qwen_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    """The last prompt of a batch is one token shorter; a single prompt has no mask."""
    draw = _Draw(model, seed)
    mask = torch.ones(batch, text_tokens, dtype=torch.int64, device=draw.like.device)
    mask[-1, -1] = 0
    return {
        "hidden_states": draw.normal(batch, size * size, NUM_CHANNELS),
        "timestep": draw.timestep(batch, torch.float32, 1000),
        "guidance": None,
        "encoder_hidden_states_mask": mask if batch > 1 else None,
        "encoder_hidden_states": draw.normal(batch, text_tokens, TEXT_DIM),
        "img_shapes": [[(1, size, size)]] * batch,
        "attention_kwargs": {},
        "return_dict": False,
    }


def build_dit(depth: int, seed: int = 0) -> nn.Module:
    model = DiTTransformer2DModel(
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=NUM_CHANNELS,
        num_layers=depth,
        sample_size=8,
        num_embeds_ada_norm=NUM_CLASSES,
    )
    return finish(model, seed)


def _dit_inputs(model: nn.Module, *, batch: int, size: int, text_tokens: int, seed: int) -> Inputs:
    """Class labels stand for the text, so `text_tokens` says nothing here."""
    draw = _Draw(model, seed)
    labels = torch.randint(NUM_CLASSES, (batch,), generator=draw.generator)
    return {
        "hidden_states": draw.normal(batch, NUM_CHANNELS, 2 * size, 2 * size),
        "timestep": draw.timestep(batch, torch.int64, 1),
        "class_labels": labels.to(draw.like.device),
        "return_dict": False,
    }


_BLOCKS = ("transformer_blocks",)
_JOINT = ("encoder_hidden_states", "hidden_states")
_FLUX_BLOCKS = ("transformer_blocks", "single_transformer_blocks")
_JOINT_BLOCKS = dict.fromkeys(_FLUX_BLOCKS, _JOINT)

FLUX = TinyModel(
    "flux", _flux_of_depth, _flux_inputs, _FLUX_BLOCKS, _JOINT_BLOCKS, timestep_divisor=1000
)
SD3 = TinyModel("sd3", build_sd3, _sd3_inputs, _BLOCKS, _JOINT_BLOCKS)
SD35 = TinyModel("sd35", _sd35_of_depth, _sd3_inputs, _BLOCKS, _JOINT_BLOCKS)
WAN = TinyModel(
    "wan", build_wan, _wan_inputs, ("blocks",), {"blocks": ("hidden_states",)}, torch.int64
)
QWEN = TinyModel("qwen", build_qwen, _qwen_inputs, _BLOCKS, _JOINT_BLOCKS, timestep_divisor=1000)
DIT = TinyModel(
    "dit", build_dit, _dit_inputs, _BLOCKS, {"transformer_blocks": ("hidden_states",)}, torch.int64
)
TINY_MODELS = (FLUX, SD3, SD35, WAN, QWEN, DIT)
