"""The calls of one image, on the device of a model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.gpu.transformers import DitLike, DitSizes, FluxLike, FluxSizes

NUM_STEPS = 28
Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Those of one run: what people serve on a GPU, or as little as shows that it works."""

    small_flux: FluxSizes
    flux: FluxSizes
    dit: DitSizes
    num_rounds: int


ON_GPU = Sizes(
    small_flux=FluxSizes(2, 4, 4, 32, 64, 16, 16, 32),
    flux=FluxSizes(19, 38, 24, 128, 4096, 64, 64, 512),
    dit=DitSizes(28, 16, 72, 4, 32),
    num_rounds=20,
)
ON_CPU = Sizes(
    small_flux=FluxSizes(1, 2, 1, 16, 8, 4, 4, 4),
    flux=FluxSizes(2, 2, 1, 16, 8, 4, 4, 4),
    dit=DitSizes(3, 1, 16, 4, 8),
    num_rounds=2,
)


def build(
    make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype, seed: int = 0
) -> nn.Module:
    """A model whose weights never exist anywhere else."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = make()
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def image_of(model: nn.Module, seed: int = 0) -> tuple[Inputs, ...]:
    """Latents that go straight from noise to other noise while the timestep falls from 1 to 1/28,
    under one conditioning. The same numbers on each device."""
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device, like.dtype)

    latents, conditioning = _shapes_of(model)
    start, end = normal(*latents), normal(*latents)
    given = {
        name: torch.tensor([7], device=like.device) if shape == (1,) else normal(*shape)
        for name, shape in conditioning.items()
    }
    levels = [1 - step / NUM_STEPS for step in range(NUM_STEPS)]
    return tuple(
        {
            **given,
            "hidden_states": torch.lerp(end, start, level),
            "timestep": torch.full([1], level, device=like.device),
        }
        for level in levels
    )


def _shapes_of(model: nn.Module) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Of latents, and of what conditions them; a lone index where that is (1,)."""
    if isinstance(model, FluxLike):
        flux = model.sizes
        text = (1, flux.num_text_tokens, flux.text_dim)
        return (1, flux.num_tokens, flux.num_channels), {"encoder_hidden_states": text}
    assert isinstance(model, DitLike)
    dit = model.sizes
    return (1, dit.num_channels, dit.image_side, dit.image_side), {"class_labels": (1,)}
