"""FLUX with random weights, small enough for a CPU, and the calls of a denoising loop."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

HEAD_DIM = 32
ROPE_DIMS = (8, 12, 12)
TEXT_DIM = 64
POOLED_DIM = 32
NUM_CHANNELS = 16
# A multiple of 4, so that rounds of 4 calls begin where images begin.
NUM_IMAGE_STEPS = 28

Inputs = dict[str, object]


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of a model and of its inputs; `image_side` squared is the number of image tokens."""

    name: str
    num_heads: int
    image_side: int
    num_text_tokens: int

    def __str__(self) -> str:
        heads = "1 head" if self.num_heads == 1 else f"{self.num_heads} heads"
        tokens = f"{self.image_side**2} image and {self.num_text_tokens} text tokens"
        return f"{self.name}: {heads} of {HEAD_DIM}, {tokens}"


HOST = Preset("host", num_heads=1, image_side=2, num_text_tokens=4)
CPU = Preset("cpu", num_heads=4, image_side=16, num_text_tokens=32)
COLD = Preset("cold compile", num_heads=4, image_side=8, num_text_tokens=16)
PRESETS = {preset.name: preset for preset in (HOST, CPU)}


@dataclass(frozen=True, slots=True)
class Depth:
    """How many blocks of each kind."""

    num_double: int
    num_single: int

    def __str__(self) -> str:
        return f"{self.num_double}+{self.num_single}"

    @property
    def num_blocks(self) -> int:
        return self.num_double + self.num_single


def parse_depth(text: str) -> Depth:
    """`6+12` is 6 double and 12 single blocks."""
    double, plus, single = text.partition("+")
    if not (plus and double.isdigit() and single.isdigit() and int(double) and int(single)):
        raise ValueError(f"a depth is two counts such as 6+12, got {text!r}")
    return Depth(int(double), int(single))


def build_model(preset: Preset, depth: Depth, seed: int = 0) -> nn.Module:
    """A model in inference mode in which every weight has an effect."""
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        in_channels=NUM_CHANNELS,
        num_layers=depth.num_double,
        num_single_layers=depth.num_single,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=preset.num_heads,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        axes_dims_rope=ROPE_DIMS,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def make_image(preset: Preset, seed: int = 0) -> tuple[Inputs, ...]:
    """The calls of one image: kwargs a step, all with the very same conditioning tensors.

    The latents go straight from noise to other noise and the timestep falls from 1 to 1/28.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    num_image_tokens = preset.image_side**2
    start = normal(1, num_image_tokens, NUM_CHANNELS)
    end = normal(1, num_image_tokens, NUM_CHANNELS)
    conditioning: Inputs = {
        "pooled_projections": normal(1, POOLED_DIM),
        "encoder_hidden_states": normal(1, preset.num_text_tokens, TEXT_DIM),
        "txt_ids": torch.zeros(preset.num_text_tokens, 3),
        "img_ids": _image_ids(preset.image_side),
        "return_dict": False,
    }
    levels = [1 - step / NUM_IMAGE_STEPS for step in range(NUM_IMAGE_STEPS)]
    return tuple(
        {
            **conditioning,
            "hidden_states": torch.lerp(end, start, level),
            "timestep": torch.full([1], level),
        }
        for level in levels
    )


def _image_ids(side: int) -> Tensor:
    """[side * side, 3]: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def image_after_image(image: tuple[Inputs, ...]) -> Iterator[Inputs]:
    """The calls of one image over and over."""
    return itertools.cycle(image)
