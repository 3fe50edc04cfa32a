"""Hand-written transformers of other codes' styles: residuals that are added in place in six forms,
a counter on the module, sizes that are kept as a tensor.

Called as those of `own_dits` are; `is_sound=False` makes the neighbour that can't be cached."""

import torch
from torch import Tensor, nn

from support.in_place import Form
from zoo.own_dits import WIDTH, Attention, Mlp, OwnDiT, ParallelBlock, blocks_of


class WritingBlock(nn.Module):
    """Both residuals are written into the stream, by `write`; the neighbour's also to a buffer."""

    def __init__(self, write: Form, is_sound: bool) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(WIDTH), Attention(), Mlp()
        self.write, self.is_sound = write, is_sound
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        x = self.norm(h)
        h = self.write(h, temb * self.attention(x, x))
        if not self.is_sound:
            self.seen.add_(h.mean())
        return self.write(h, temb * self.mlp(self.norm(h)))


class WritingDiT(OwnDiT):
    """The glue writes into the stream too, in the form of the blocks."""

    def __init__(self, num_layers: int, write: Form, is_sound: bool = True) -> None:
        self.write = write
        super().__init__(num_layers, is_sound)

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = nn.ModuleList(
            WritingBlock(self.write, self.is_sound) for _ in range(num_layers)
        )

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        text = 0.1 * e.mean(dim=1, keepdim=True).expand_as(h)
        for block in self.blocks:
            h = self.write(h, text)
            h = block(h, temb)
        return h


class CountingDiT(OwnDiT):
    """Counts its calls on itself. The neighbour's blocks stand side by side."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks, self.num_calls = blocks_of(ParallelBlock, num_layers), 0

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        self.num_calls += 1
        if not self.is_sound:
            return torch.stack([block(h, temb) for block in self.blocks]).mean(dim=0)
        for block in self.blocks:
            h = block(h, temb)
        return h


class SizedBlock(nn.Module):
    """Adds where a token is, in a grid whose sizes come as numbers or as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()
        self.register_buffer("places", 0.1 * torch.randn(16, WIDTH))

    def forward(self, h: Tensor, temb: Tensor, sizes: Tensor) -> Tensor:
        for height, width in sizes.tolist():
            rows = self.places[:height].view(height, 1, WIDTH)
            columns = self.places[:width].view(1, width, WIDTH)
            places = (rows + columns).reshape(height * width, WIDTH)
            h = torch.cat([h[:, : height * width] + places, h[:, height * width :]], dim=1)
        return h + self.mlp(h * (1 + temb))


class SizesDiT(OwnDiT):
    """Sizes are kept as a tensor, which every block turns into numbers."""

    def make_blocks(self, num_layers: int) -> None:
        self.blocks = blocks_of(SizedBlock, num_layers)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor) -> Tensor:
        sizes = torch.stack([torch.tensor([1, h.shape[1]])])
        for block in self.blocks:
            h = block(h, temb, sizes)
        return h
