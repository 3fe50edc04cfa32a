"""The models: how each is built, called, and sampled through its real pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from bench.train.clips import CLIPS, NUM_FRAMES
from bench.train.scenes import BUSY_SCENES, SCENES
from bench.train.world import WORD_DIM, World
from dit_cachegraph.demo.codec import LATENT_DIM
from dit_cachegraph.demo.flux_scenes import TOKENS_A_SIDE, unpack

NUM_WHERES = 3  # channels that say where a token is
WAN_CHANNELS = LATENT_DIM // 4 + NUM_WHERES
Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`call(model, latents, level, text)` gives the velocity; level 1 is noise, 0 the drawing.

    `pack` turns the codec's [B, ..., 48, h, w] into the model's latents, `unpack` turns them back.
    `start` takes white noise of the latents' shape and gives what a drawing is sampled from.
    `mean_logit` is that of the noise levels trained on: above 0, more of them are high.
    """

    name: str
    folder: str
    world: World
    model_class: Callable[..., nn.Module]
    config: Mapping[str, object]
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], Tensor]
    start: Callable[[Tensor], Tensor]
    latent_shape: tuple[int, ...]
    call: Call
    batch_size: int
    gpu_batch_size: int
    mean_logit: float = 0.0

    def build(self) -> nn.Module:
        """A new model with random weights."""
        return self.model_class(**self.config)


def call_flux(model: nn.Module, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
    """Velocity [B, 64, 48]; latents likewise, level [B], text [B, words, WORD_DIM]."""
    velocity: Tensor = model(
        hidden_states=latents,
        timestep=level,
        encoder_hidden_states=text,
        pooled_projections=text.mean(1),
        txt_ids=torch.zeros(text.shape[1], 3, device=text.device),
        img_ids=image_ids(latents.device),
        return_dict=False,
    )[0]
    return velocity


def image_ids(device: torch.device) -> Tensor:
    """[64, 3]: 0, row, column, as FluxPipeline makes them."""
    line = torch.arange(TOKENS_A_SIDE, device=device)
    row, column = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1).float()


def pack_flux(latents: Tensor) -> Tensor:
    """[B, 48, 8, 8] -> [B, 64, 48]."""
    return latents.flatten(2).transpose(1, 2)


def start_flux(noise: Tensor) -> Tensor:
    """As it is."""
    return noise


def call_wan(model: nn.Module, latents: Tensor, level: Tensor, text: Tensor) -> Tensor:
    """Velocity [B, 15, 8, 8, 8]; latents likewise, level [B], text [B, words, WORD_DIM]."""
    velocity: Tensor = model(
        hidden_states=latents,
        timestep=1000 * level,
        encoder_hidden_states=text,
        return_dict=False,
    )[0]
    return velocity


def pack_wan(latents: Tensor) -> Tensor:
    """[B, 8, 48, 4, 4] -> [B, 15, 8, 8, 8]: channels, frames, rows, columns."""
    drawn = nn.functional.pixel_shuffle(latents, 2).transpose(1, 2)
    return torch.cat([drawn, _wheres(drawn)], 1)


def unpack_wan(latents: Tensor) -> Tensor:
    """[B, 15, 8, 8, 8] -> [B, 8, 48, 4, 4]."""
    return nn.functional.pixel_unshuffle(latents[:, :-NUM_WHERES].transpose(1, 2), 2)


def start_wan(noise: Tensor) -> Tensor:
    """Noise [B, 15, 8, 8, 8] with the last channels as they are in every drawing."""
    return torch.cat([noise[:, :-NUM_WHERES], _wheres(noise)], 1)


def _wheres(latents: Tensor) -> Tensor:
    """[B, 3, F, h, w]: frame, row and column.

    Wan knows only how far two tokens are from each other, and would have to learn from the borders
    alone where it is. These channels are the same in noise and drawing, so a step leaves them be.
    """
    lines = [torch.linspace(-1.5, 1.5, n, device=latents.device) for n in latents.shape[2:]]
    wheres = torch.stack(torch.meshgrid(*lines, indexing="ij"))
    return wheres.expand(len(latents), -1, -1, -1, -1)


FLUX = Recipe(
    name="flux",
    folder="flux-scenes",
    world=SCENES,
    model_class=FluxTransformer2DModel,
    config=MappingProxyType(
        {
            "patch_size": 1,
            "in_channels": LATENT_DIM,
            "num_layers": 4,
            "num_single_layers": 8,
            "attention_head_dim": 32,
            "num_attention_heads": 3,
            "joint_attention_dim": WORD_DIM,
            "pooled_projection_dim": WORD_DIM,
            "axes_dims_rope": (8, 12, 12),
        }
    ),
    pack=pack_flux,
    unpack=unpack,
    start=start_flux,
    latent_shape=(TOKENS_A_SIDE**2, LATENT_DIM),
    call=call_flux,
    batch_size=32,
    gpu_batch_size=512,
    mean_logit=0.5,
)
# The weights that the quality benches have their figures of: with the demo's, each would be void.
BUSY_FLUX = replace(FLUX, name="busy-flux", folder="busy-scenes", world=BUSY_SCENES, mean_logit=0.0)
WAN = Recipe(
    name="wan",
    folder="wan-clips",
    world=CLIPS,
    model_class=WanTransformer3DModel,
    config=MappingProxyType(
        {
            "patch_size": (1, 2, 2),
            "in_channels": WAN_CHANNELS,
            "out_channels": WAN_CHANNELS,
            "num_layers": 10,
            "num_attention_heads": 3,
            "attention_head_dim": 32,
            "ffn_dim": 288,
            "text_dim": WORD_DIM,
            "freq_dim": 64,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 4 * NUM_FRAMES,
        }
    ),
    pack=pack_wan,
    unpack=unpack_wan,
    start=start_wan,
    latent_shape=(WAN_CHANNELS, NUM_FRAMES, 8, 8),
    call=call_wan,
    batch_size=16,
    gpu_batch_size=256,
)
RECIPES = MappingProxyType({recipe.name: recipe for recipe in (FLUX, BUSY_FLUX, WAN)})
