"""Hand-written diffusion transformers, in shapes that diffusers has none of.

Each is called as forward(hidden_states (batch, tokens, NUM_CHANNELS), timestep (batch,),
encoder_hidden_states (batch, text tokens, TEXT_DIM)) and has `num_layers` blocks a list;
`is_sound=False` makes its neighbour: the same, but for one thing that can't be cached."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.tiny_models import NUM_CHANNELS, TEXT_DIM

WIDTH = 16


class TimeEmbedding(nn.Module):
    """Slow waves of a timestep from 0 to 1000, so that neighbouring steps are near."""

    def __init__(self) -> None:
        super().__init__()
        self.waves = nn.Linear(4, WIDTH)

    def forward(self, timestep: Tensor) -> Tensor:
        angles = timestep[:, None] / 1000 * torch.arange(1.0, 5.0)
        return torch.tanh(self.waves(torch.sin(math.pi / 4 * angles).to(timestep)))[:, None]


class OwnDiT(nn.Module):
    """Projections around `trunk`, which subclasses write."""

    def __init__(self, num_layers: int, is_sound: bool = True) -> None:
        super().__init__()
        self.time, self.text_in = TimeEmbedding(), nn.Linear(TEXT_DIM, WIDTH)
        self.proj_in, self.proj_out = nn.Linear(NUM_CHANNELS, WIDTH), nn.Linear(WIDTH, NUM_CHANNELS)
        self.is_sound = is_sound
        self.make_blocks(num_layers)

    def make_blocks(self, num_layers: int) -> None:
        raise NotImplementedError

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        h, e = self.proj_in(hidden_states), self.text_in(encoder_hidden_states)
        return self.proj_out(self.trunk(h, self.time(timestep), e))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        raise NotImplementedError


class Mlp(nn.Module):
    def __init__(self, width: int = WIDTH, out: int = WIDTH) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = (nn.Linear(WIDTH, n) for n in (WIDTH, 2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = self.kv(context).chunk(2, dim=-1)
        return self.out(F.scaled_dot_product_attention(self.q(x), k, v))


def blocks_of(cls: type[nn.Module], num_blocks: int) -> nn.ModuleList:
    return nn.ModuleList(cls() for _ in range(num_blocks))


class PreNormBlock(nn.Module):
    """Two norms, shifted, scaled and gated by the timestep."""

    def __init__(self, is_sound: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        self.attention, self.mlp, self.is_sound = Attention(), Mlp(), is_sound
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(temb).chunk(6, dim=-1)
        x = self.norm(h) * (1 + scale1) + shift1
        update = gate1 * self.attention(x, torch.cat([x, e], dim=1))
        h.add_(update)
        if not self.is_sound:
            self.seen.add_(update.mean())
        return h + gate2 * self.mlp(self.norm(h) * (1 + scale2) + shift2)


class PreNormDiT(OwnDiT):
    """The blocks write into the stream that they are given; the neighbour's to a buffer as well."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = nn.ModuleList(PreNormBlock(self.is_sound) for _ in range(num_layers))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, temb, e)
        return h


class ParallelBlock(nn.Module):
    """Attention and MLP of one norm, added at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(WIDTH), Attention(), Mlp()

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        x = self.norm(h)
        return h + temb * (self.attention(x, x) + self.mlp(x))


class ParallelDiT(OwnDiT):
    """The neighbour's blocks stand side by side: none feeds the next."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = blocks_of(ParallelBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        if not self.is_sound:
            return torch.stack([block(h, temb) for block in self.blocks]).mean(dim=0)
        for block in self.blocks:
            h = block(h, temb)
        return h


class UpBlock(nn.Module):
    """Reads what the block on the other side of the U made."""

    def __init__(self) -> None:
        super().__init__()
        self.join, self.block = nn.Linear(2 * WIDTH, WIDTH), ParallelBlock()

    def forward(self, h: Tensor, skip: Tensor, temb: Tensor) -> Tensor:
        return self.block(self.join(torch.cat([h, skip], dim=-1)), temb)


class WideningBlock(nn.Module):
    """Hands on twice as many channels as it was given, and so no stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, 2 * width)

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h, h], dim=-1) + self.mlp(h)


class UShapedDiT(OwnDiT):
    """Down, a block in the middle, and up with skips. The neighbour only widens."""

    def make_blocks(self, num_layers: int) -> None:
        if not self.is_sound:
            self.down = nn.ModuleList(WideningBlock(WIDTH * 2**i) for i in range(num_layers))
            self.narrow = nn.Linear(WIDTH * 2**num_layers, WIDTH)
            return
        self.down = blocks_of(ParallelBlock, num_layers)
        self.middle = ParallelBlock()
        self.up = blocks_of(UpBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            h = block(h, temb) if self.is_sound else block(h)
            skips.append(h)
        if not self.is_sound:
            return self.narrow(h)
        h = self.middle(h, temb)
        for block in self.up:
            h = block(h, skips.pop(), temb)
        return h


class ExpertsBlock(nn.Module):
    """Every expert works on every token, and a router weighs them."""

    def __init__(self, num_experts: int = 3) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_experts)
        self.experts = nn.ModuleList(Mlp() for _ in range(num_experts))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        x = self.norm(h)
        shares = self.router(x).softmax(dim=-1)
        worked = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return h + temb * (worked * shares[..., None, :]).sum(dim=-1)


class ExpertsDiT(OwnDiT):
    """The neighbour picks its tokens once for all blocks, by data: any number of them."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = blocks_of(ExpertsBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        if self.is_sound:
            for block in self.blocks:
                h = block(h, temb)
            return h
        picked = (h[0].sum(dim=-1) > 0).nonzero()[:, 0]
        some = h[:, picked]
        for block in self.blocks:
            some = block(some, temb)
        return torch.index_copy(h, 1, picked, some)


class RoutedExperts(nn.Module):
    """Every token goes to the one expert that its router picks: by data."""

    def __init__(self, num_experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, num_experts)
        self.experts = nn.ModuleList(Mlp() for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        share, picked = self.router(x).softmax(dim=-1).max(dim=-1)
        routed = self.route(x.flatten(0, 1), picked=picked.flatten())
        return share[..., None] * routed.view_as(x)

    def route(self, tokens: Tensor, picked: Tensor) -> Tensor:
        routed = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            (mine,) = (picked == i).nonzero(as_tuple=True)
            if len(mine) > 0:
                routed[mine] = expert(tokens[mine])
        return routed


class RoutedBlock(nn.Module):
    """Attention, and experts of which each token sees one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.experts = RoutedExperts()

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        x = self.norm(h)
        h = h + self.attention(x, x)
        return h + temb * self.experts(self.norm(h))


class RoutedDiT(OwnDiT):
    """The experts are routed by data in every block, which is no graph unless they are kept
    whole."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = blocks_of(RoutedBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
        return h


class TowersDiT(OwnDiT):
    """Two towers, in turn, that read each other; the neighbour's in a context manager."""

    def make_blocks(self, num_layers: int) -> None:
        self.image_blocks = blocks_of(PreNormBlock, num_layers)
        self.text_blocks = blocks_of(PreNormBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        if self.is_sound:
            return self.climb(h, temb, e)
        with torch.autocast("cpu", torch.bfloat16):
            return self.climb(h, temb, e).float()

    def climb(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for image, text in zip(self.image_blocks, self.text_blocks, strict=True):
            h = image(h, temb, e)
            e = text(e, temb, h)
        return h + e.mean(dim=1, keepdim=True)


class TwiceDiT(OwnDiT):
    """The whole list is called twice. The neighbour has one block, called once."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = blocks_of(ParallelBlock, num_layers if self.is_sound else 1)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for _ in range(2 if self.is_sound else 1):
            for block in self.blocks:
                h = block(h, temb)
        return h


class PairDiT(OwnDiT):
    """Lists of two. The neighbour's two are of two kinds."""

    def make_blocks(self, num_layers: int) -> None:
        blocks = [ParallelBlock() for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks if self.is_sound else [ParallelBlock(), ExpertsBlock()])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
        return h


class DictDiT(OwnDiT):
    """The blocks are in a dictionary. The neighbour's all read the first stream."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = nn.ModuleDict({f"block_{i}": ParallelBlock() for i in range(num_layers)})

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        start = h
        for block in self.blocks.values():
            h = block(h, temb) if self.is_sound else h + block(start, temb)
        return h


class Weights(nn.Module):
    """Holds what a function works with, and is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(2 * WIDTH, WIDTH))
        self.down = nn.Parameter(torch.empty(WIDTH, 2 * WIDTH))


def gated(h: Tensor, temb: Tensor, weights: Weights) -> Tensor:
    x = F.layer_norm(h, h.shape[-1:]) * (1 + temb)
    x = x + F.scaled_dot_product_attention(x, x, x)
    return h + temb * F.linear(F.silu(F.linear(x, weights.up)), weights.down)


def squashed(h: Tensor, temb: Tensor, weights: Weights) -> Tensor:
    return h + torch.tanh(F.linear(F.linear(h, weights.up), weights.down) * temb)


class FunctionsDiT(OwnDiT):
    """A loop over a function, without modules. The neighbour's two have nothing in common."""

    def make_blocks(self, num_layers: int) -> None:
        self.weights = blocks_of(Weights, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        if not self.is_sound:
            return squashed(gated(h, temb, self.weights[0]), temb, self.weights[1])
        for weights in self.weights:
            h = gated(h, temb, weights)
        return h
