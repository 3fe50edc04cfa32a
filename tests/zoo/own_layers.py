"""Hand-written transformers whose blocks are called by nobody, or out of sight: layers that are
lists of their parts, blocks under `torch.utils.checkpoint`, a big tower beside a small one.

Called as those of `own_dits` are; `is_sound=False` makes the neighbour that can't be cached."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.own_dits import (
    WIDTH,
    Attention,
    Mlp,
    OwnDiT,
    PreNormBlock,
    Weights,
    blocks_of,
    gated,
)


class NormedAttention(nn.Module):
    """Reads the stream and hands on what is to be added to it, as the MLP beside it does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm(h)
        return self.attention(x, x)


class LayersDiT(OwnDiT):
    """Layers of an attention and an MLP, which are added outside of any module. The layers of the
    neighbour stand side by side."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        made = []
        for attention, mlp in self.parts():
            x = attention(h + temb) + h
            x = x + temb * mlp(x)
            made.append(x)
            h = x if self.is_sound else h
        return h if self.is_sound else torch.stack(made).mean(dim=0)

    def parts(self) -> list[tuple[nn.Module, ...]]:
        raise NotImplementedError


class ListOfListsDiT(LayersDiT):
    def make_blocks(self, num_layers: int) -> None:
        self.layers = nn.ModuleList(
            nn.ModuleList([NormedAttention(), Mlp()]) for _ in range(num_layers)
        )

    def parts(self) -> list[tuple[nn.Module, ...]]:
        return [tuple(layer) for layer in self.layers]


class ListOfDictsDiT(LayersDiT):
    def make_blocks(self, num_layers: int) -> None:
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attention": NormedAttention(), "mlp": Mlp()}) for _ in range(num_layers)
        )

    def parts(self) -> list[tuple[nn.Module, ...]]:
        return [(layer["attention"], layer["mlp"]) for layer in self.layers]


class ZippedDiT(LayersDiT):
    """Two lists side by side."""

    def make_blocks(self, num_layers: int) -> None:
        self.attentions = blocks_of(NormedAttention, num_layers)
        self.mlps = blocks_of(Mlp, num_layers)

    def parts(self) -> list[tuple[nn.Module, ...]]:
        return list(zip(self.attentions, self.mlps, strict=True))


class TuplesDiT(ZippedDiT):
    """A Python list of tuples holds the modules of two lists."""

    def make_blocks(self, num_layers: int) -> None:
        super().make_blocks(num_layers)
        self.layers = list(zip(self.attentions, self.mlps, strict=True))

    def parts(self) -> list[tuple[nn.Module, ...]]:
        return self.layers


class CheckpointedDiT(OwnDiT):
    """Each block runs under a checkpoint; the neighbour's writes to a buffer there."""

    use_reentrant = False

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = nn.ModuleList(PreNormBlock(self.is_sound) for _ in range(num_layers))
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = checkpoint(block, h, temb, e, use_reentrant=self.use_reentrant)
        return h + self.head(h)


class ReentrantDiT(CheckpointedDiT):
    use_reentrant = True


class BesideDiT(OwnDiT):
    """A tower of blocks on the image, and as many small layers on the text. The neighbour's big
    tower holds no modules, so that the small layers are the only list."""

    def make_blocks(self, num_layers: int) -> None:
        self.small = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(num_layers))
        self.blocks = blocks_of(PreNormBlock if self.is_sound else Weights, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        e = e.mean(dim=1, keepdim=True)
        for layer in self.small:
            e = e + torch.tanh(layer(e))
        for block in self.blocks:
            h = block(h, temb, e) if self.is_sound else gated(h, temb + e, block)
        return h
