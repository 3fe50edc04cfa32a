"""Two transformers of the sizes that people run, of plain layers and with random weights: on a
machine with a GPU there may be no diffusers.

    FluxLike   two streams through double blocks, then one through single blocks; rotary positions
    DitLike    one stream, a class in place of a text
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class FluxSizes:
    """Of a `FluxLike`; `image_side` squared is the number of image tokens."""

    num_double: int
    num_single: int
    num_heads: int
    head_dim: int
    text_dim: int
    num_channels: int
    image_side: int
    num_text_tokens: int

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_tokens(self) -> int:
        return self.image_side**2


@dataclass(frozen=True, slots=True)
class DitSizes:
    """Of a `DitLike`."""

    num_blocks: int
    num_heads: int
    head_dim: int
    num_channels: int
    image_side: int
    patch: int = 2
    num_classes: int = 1000

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def num_tokens(self) -> int:
        return (self.image_side // self.patch) ** 2


class FluxLike(nn.Module):
    """Latents [B, N, C] and text [B, T, D], to [B, N, C]."""

    def __init__(self, sizes: FluxSizes) -> None:
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.x_embedder = nn.Linear(sizes.num_channels, width)
        self.context_embedder = nn.Linear(sizes.text_dim, width)
        self.time_embedder = _TimeEmbedder(width)
        self.double_blocks = nn.ModuleList([_Double(sizes) for _ in range(sizes.num_double)])
        self.single_blocks = nn.ModuleList([_Single(sizes) for _ in range(sizes.num_single)])
        self.norm_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, sizes.num_channels)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
    ) -> Tensor:
        temb = self.time_embedder(timestep, hidden_states.dtype)
        hidden, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        rotary = _rotary(self.sizes, hidden.device, hidden.dtype)
        for double in self.double_blocks:
            hidden, text = double(hidden, text, temb, rotary)
        joint = torch.cat([text, hidden], dim=1)
        for single in self.single_blocks:
            joint = single(joint, temb, rotary)
        shift, scale = self.norm_out(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        out = _modulated(joint[:, text.shape[1] :], shift, scale)
        projected: Tensor = self.proj_out(out)
        return projected


class DitLike(nn.Module):
    """Latents [B, C, H, W] and classes [B], to [B, C, H, W]."""

    def __init__(self, sizes: DitSizes) -> None:
        super().__init__()
        width, patch = sizes.width, sizes.patch
        self.sizes = sizes
        self.x_embedder = nn.Conv2d(sizes.num_channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, sizes.num_tokens, width))
        self.time_embedder = _TimeEmbedder(width)
        self.classes = nn.Embedding(sizes.num_classes, width)
        self.blocks = nn.ModuleList(
            [_Plain(width, sizes.num_heads) for _ in range(sizes.num_blocks)]
        )
        self.norm_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, sizes.num_channels * patch * patch)

    def forward(self, hidden_states: Tensor, class_labels: Tensor, timestep: Tensor) -> Tensor:
        patches = self.x_embedder(hidden_states).flatten(2).transpose(1, 2)
        hidden = patches + self.positions
        temb = self.time_embedder(timestep, hidden.dtype) + self.classes(class_labels)
        for block in self.blocks:
            hidden = block(hidden, temb)
        shift, scale = self.norm_out(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        out = self.proj_out(_modulated(hidden, shift, scale))
        side, patch = self.sizes.image_side // self.sizes.patch, self.sizes.patch
        grid = out.unflatten(1, (side, side)).unflatten(-1, (patch, patch, -1))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class _TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        powers = torch.arange(128, device=timestep.device, dtype=torch.float32) / 128
        angles = 1000 * timestep.float().unsqueeze(-1) * torch.exp(-math.log(THETA) * powers)
        embedded: Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return embedded


class _Double(nn.Module):
    """Image and text with weights of their own, and one attention over both."""

    def __init__(self, sizes: FluxSizes) -> None:
        super().__init__()
        width, num_heads = sizes.width, sizes.num_heads
        self.image, self.text = _Half(width, num_heads), _Half(width, num_heads)

    def forward(
        self, hidden: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        image_parts, text_parts = self.image.modulation(temb), self.text.modulation(temb)
        own, theirs = self.image.heads(hidden, image_parts), self.text.heads(text, text_parts)
        query, key, value = (torch.cat([t, i], dim=2) for t, i in zip(theirs, own, strict=True))
        mixed = _attention(query, key, value, rotary)
        num_text = text.shape[1]
        hidden = self.image.finish(hidden, mixed[:, num_text:], image_parts)
        return hidden, self.text.finish(text, mixed[:, :num_text], text_parts)


class _Half(nn.Module):
    """What a block does to one stream: before the attention, and after it."""

    def __init__(
        self, width: int, num_heads: int, head_norm: Callable[[int], nn.Module] = nn.RMSNorm
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_q, self.norm_k = head_norm(width // num_heads), head_norm(width // num_heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def modulation(self, temb: Tensor) -> tuple[Tensor, ...]:
        return self.modulate(F.silu(temb)).unsqueeze(1).chunk(6, dim=-1)

    def heads(self, stream: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(_modulated(stream, parts[0], parts[1]))
        query, key, value = (_as_heads(x, self.num_heads) for x in qkv.chunk(3, dim=-1))
        return self.norm_q(query), self.norm_k(key), value

    def finish(self, stream: Tensor, mixed: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        stream = stream + parts[2] * self.out(mixed)
        inner = F.gelu(self.up(_modulated(stream, parts[3], parts[4])), approximate="tanh")
        return stream + parts[5] * self.down(inner)


class _Single(nn.Module):
    """Attention and MLP side by side, over both streams in one."""

    def __init__(self, sizes: FluxSizes) -> None:
        super().__init__()
        width = sizes.width
        self.num_heads = sizes.num_heads
        self.modulate = nn.Linear(width, 3 * width)
        self.qkv, self.up = nn.Linear(width, 3 * width), nn.Linear(width, 4 * width)
        self.norm_q, self.norm_k = nn.RMSNorm(sizes.head_dim), nn.RMSNorm(sizes.head_dim)
        self.out = nn.Linear(5 * width, width)

    def forward(self, joint: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate = self.modulate(F.silu(temb)).unsqueeze(1).chunk(3, dim=-1)
        normed = _modulated(joint, shift, scale)
        query, key, value = (
            _as_heads(x, self.num_heads) for x in self.qkv(normed).chunk(3, dim=-1)
        )
        mixed = _attention(self.norm_q(query), self.norm_k(key), value, rotary)
        inner = F.gelu(self.up(normed), approximate="tanh")
        return joint + gate * self.out(torch.cat([mixed, inner], dim=-1))


class _Plain(nn.Module):
    """A block of one stream."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.stream = _Half(width, num_heads, head_norm=nn.Identity)

    def forward(self, hidden: Tensor, temb: Tensor) -> Tensor:
        parts = self.stream.modulation(temb)
        mixed = _attention(*self.stream.heads(hidden, parts), None)
        return self.stream.finish(hidden, mixed, parts)


def _modulated(stream: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(stream, stream.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _as_heads(stream: Tensor, num_heads: int) -> Tensor:
    """[B, T, W] to [B, heads, T, W / heads]."""
    return stream.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> Tensor:
    if rotary is not None:
        query, key = _rotated(query, *rotary), _rotated(key, *rotary)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _rotary(sizes: FluxSizes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [T + N, head_dim]: of the text at 0, of the image by its place."""
    places = torch.arange(sizes.num_tokens, device=device, dtype=torch.float32)
    tokens = torch.cat([places.new_zeros(sizes.num_text_tokens), places])
    powers = torch.arange(0, sizes.head_dim, 2, device=device, dtype=torch.float32)
    angles = torch.outer(tokens, THETA ** (-powers / sizes.head_dim)).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
