"""Hand-written tiny diffusion transformers in plain torch, one for each shape a trunk may have.

Every model is called as forward(hidden_states (batch, NUM_TOKENS, DIM), timestep (batch,),
encoder_hidden_states (batch, NUM_TEXT_TOKENS, DIM) or None) and returns (batch, NUM_TOKENS, DIM).

Timesteps are angles in degrees that fall from 90, so that `sin` of them is 1, 0.5, 0: in the
closed-form models each block adds `step * sin(timestep)`, which can be summed in the head.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

DIM = 8
NUM_TOKENS = 6
NUM_TEXT_TOKENS = 4
Block = Callable[[Tensor, Tensor], Tensor]


class SineEmbedding(nn.Module):
    """sin(timestep) in every channel, by way of a weight as real embeddings have one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM, 1))

    def forward(self, timestep: Tensor) -> Tensor:
        waves = torch.sin(timestep[:, None] * (math.pi / 180))
        return nn.functional.linear(waves, self.weight)[:, None]


class AddingBlock(nn.Module):
    """h -> h + step * temb."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(float(step)))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return h + self.step * temb


class WritingBlock(nn.Module):
    """h -> write(h, step * temb), for effects that a skipped block would hide."""

    def __init__(self, write: Block) -> None:
        super().__init__()
        self.write = write
        self.step = nn.Parameter(torch.tensor(0.5))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.write(h, self.step * temb)


class Calling(nn.Module):
    """An adding block as a module of a module: a list of layers alone joins no other."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.block = AddingBlock(step)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.block(h, temb)


class GatedBlock(nn.Module):
    """Pre-norm with shift, scale and gate; attends to the text where it is given one."""

    def __init__(self, width: int = 2 * DIM) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM, elementwise_affine=False)
        self.modulation = nn.Linear(DIM, 3 * DIM)
        self.up, self.down = nn.Linear(DIM, width), nn.Linear(width, DIM)

    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        shift, scale, gate = self.modulation(temb).chunk(3, dim=-1)
        x = self.norm(h) * (1 + scale) + shift
        if e is not None:
            x = x + nn.functional.scaled_dot_product_attention(x, e, e)
        return h + gate * self.down(torch.tanh(self.up(x)))


class JointBlock(nn.Module):
    """Both streams attend to both: (e, h) -> (e, h); the last one may drop the text."""

    def __init__(self, drops_text: bool = False) -> None:
        super().__init__()
        self.drops_text = drops_text
        self.image, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor | None, Tensor]:
        both = torch.cat([e, h], dim=1)
        mixed = nn.functional.scaled_dot_product_attention(both, both, both)
        text, image = mixed.split([e.shape[1], h.shape[1]], dim=1)
        h = h + torch.tanh(temb) * self.image(image)
        return (None if self.drops_text else e + self.text(text)), h


class SingleBlock(nn.Module):
    """FLUX's second kind: concatenates the streams, and returns two views of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, e: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([e, h], dim=1)
        both = both + torch.tanh(temb) * self.linear(both)
        return both[:, : e.shape[1]], both[:, e.shape[1] :]


class ToyDiT(nn.Module):
    """One stream through `blocks`. Subclasses say in `trunk` how the blocks are called.

    `proj_in` and `proj_out` double and halve, so that values stay easy.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embed = SineEmbedding()
        self.proj_in, self.proj_out = _scaling(2.0), _scaling(0.5)
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        h = self.proj_in(hidden_states)
        return self.proj_out(self.trunk(h, self.embed(timestep), encoder_hidden_states))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
        return h


def _scaling(factor: float) -> nn.Linear:
    linear = nn.Linear(DIM, DIM, bias=False)
    linear.weight = nn.Parameter(factor * torch.eye(DIM))
    return linear


def adding_dit(*steps: float) -> ToyDiT:
    """proj_out(2x + sum(steps) * sin t) = x + sum(steps) / 2 * sin t."""
    return ToyDiT([AddingBlock(step) for step in steps])


def gated_dit(num_blocks: int = 4) -> ToyDiT:
    torch.manual_seed(0)
    return ToyDiT([GatedBlock() for _ in range(num_blocks)])


def writing_dit(write: Block, num_blocks: int = 4) -> ToyDiT:
    return ToyDiT([WritingBlock(write) for _ in range(num_blocks)])


class CrossDiT(ToyDiT):
    """The blocks read the text, and a refiner, a list of its own, works on the text before them."""

    def __init__(self, num_refiners: int, num_blocks: int) -> None:
        torch.manual_seed(0)
        super().__init__([GatedBlock() for _ in range(num_blocks)])
        self.refiners = nn.ModuleList(GatedBlock() for _ in range(num_refiners))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for refiner in self.refiners:
            e = refiner(e, temb)
        for block in self.blocks:
            h = block(h, temb, e)
        return h


class JointDiT(ToyDiT):
    """Two streams, the text behind refiners of its own. Nothing reads the text after the last
    block, which may not even return it."""

    def __init__(
        self, num_blocks: int, num_refiners: int = 0, last_drops_text: bool = False
    ) -> None:
        torch.manual_seed(0)
        blocks = [JointBlock() for _ in range(num_blocks - 1)]
        super().__init__([*blocks, JointBlock(last_drops_text)])
        self.refiners = nn.ModuleList(GatedBlock() for _ in range(num_refiners))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for refiner in self.refiners:
            e = refiner(e, temb)
        for block in self.blocks:
            e, h = block(h, e, temb)
        return h


class TwoListDiT(ToyDiT):
    """FLUX in small: joint blocks, then single blocks, both lists carrying both streams."""

    def __init__(self, num_double: int, num_single: int) -> None:
        torch.manual_seed(0)
        super().__init__([JointBlock() for _ in range(num_double)])
        self.single_blocks = nn.ModuleList(SingleBlock() for _ in range(num_single))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in [*self.blocks, *self.single_blocks]:
            e, h = block(h, e, temb)
        return h


class ControlDiT(ToyDiT):
    """Between the blocks something is added that depends on the text and not on the stream."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        control = e.mean(dim=1, keepdim=True)
        for block in self.blocks:
            h = block(h, temb)
            h = h + control
        return h


class ReadingDiT(ToyDiT):
    """Every block reads the text; `skip` leaves two of them out."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        skip: bool = False,
    ) -> Tensor:
        h, temb = self.proj_in(hidden_states), self.embed(timestep)
        for i, block in enumerate(self.blocks):
            if not (skip and i in (2, 3)):
                h = block(h, temb, encoder_hidden_states)
        return self.proj_out(h)


class SlicedTembDiT(ToyDiT):
    """One table of modulations for all blocks; each is called with its own slice of it."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks)
        self.table = nn.Parameter(torch.arange(1.0, len(blocks) + 1)[:, None].expand(-1, DIM))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        modulations = temb * self.table
        for i, block in enumerate(self.blocks):
            h = block(h, modulations[:, i : i + 1])
        return h


class Decoder(nn.Module):
    """Holds the list one level down, and runs it."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        for layer in self.layers:
            h = layer(h, temb)
        return h


class NestedDiT(ToyDiT):
    """The list sits in a module of a module."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__([])
        self.inner = nn.ModuleDict({"decoder": Decoder(blocks)})

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return self.inner["decoder"](h, temb)


class ClosureDiT(ToyDiT):
    """The blocks are called by a closure, as checkpointing code does."""

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        def calling(block: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda stream: block(stream, temb)

        for run in [calling(block) for block in self.blocks]:
            h = run(h)
        return h


class LongSkipDiT(ToyDiT):
    """The stream that leaves block `start` is added to what enters block `stop`."""

    def __init__(self, blocks: Sequence[nn.Module], start: int, stop: int) -> None:
        super().__init__(blocks)
        self.start, self.stop = start, stop

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        skipped = h
        for i, block in enumerate(self.blocks):
            if i == self.stop:
                h = h + skipped
            h = block(h, temb)
            if i == self.start:
                skipped = h
        return h


class TowerDiT(ToyDiT):
    """Two lists side by side, each fed by the latents, joined at the end."""

    def __init__(self, blocks: Sequence[nn.Module], side_blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks)
        self.side_blocks = nn.ModuleList(side_blocks)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        side = h
        for block in self.side_blocks:
            side = block(side, temb)
        for block in self.blocks:
            h = block(h, temb)
        return h + side


def toy_inputs(timestep: float, *, seed: int = 0, batch: int = 2) -> dict[str, Tensor]:
    """Latents and text drawn from `seed`, and a timestep in degrees for the whole batch."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, NUM_TOKENS, DIM, generator=generator),
        "timestep": torch.full((batch,), timestep),
        "encoder_hidden_states": torch.randn(batch, NUM_TEXT_TOKENS, DIM, generator=generator),
    }
