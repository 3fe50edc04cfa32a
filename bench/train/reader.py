"""A small convolutional net that reads a drawing's words back, trained on drawings alone.

It sees them through the codec and with some noise, as a sampled drawing comes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from bench.train.world import World
from dit_cachegraph.demo.codec import decode, encode

READER = "reader.safetensors"
NUM_FEATURES = 128
MOST_NOISE = 0.15  # standard deviation, for drawings in [-1, 1]
LAST_SIDE = 4  # of the last map; small enough to flatten, so that places are not lost


class Reader(nn.Module):
    """`forward` takes drawings [B, channels, side, side] and gives logits, a tensor a slot."""

    def __init__(self, num_channels: int, side: int, slots: Mapping[str, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, next_width = num_channels, 32
        while side > LAST_SIDE:
            layers += [
                nn.Conv2d(width, next_width, 3, stride=2, padding=1),
                nn.GroupNorm(8, next_width),
                nn.SiLU(),
            ]
            width, next_width, side = next_width, min(96, next_width + 32), side // 2
        layers += [nn.Flatten(), nn.Linear(width * side**2, NUM_FEATURES), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({slot: nn.Linear(NUM_FEATURES, n) for slot, n in slots.items()})

    def forward(self, drawings: Tensor) -> dict[str, Tensor]:
        features = self.features(drawings)
        return {slot: head(features) for slot, head in self.heads.items()}


def make_reader(world: World) -> Reader:
    """For the drawings of this world; the frames of a clip are read side by side."""
    drawings, _ = world.draw(1, Generator().manual_seed(0))
    flat = flatten_frames(drawings)
    return Reader(flat.shape[1], flat.shape[-1], {s: len(w) for s, w in world.slots.items()})


def flatten_frames(drawings: Tensor) -> Tensor:
    """[B, 3, H, W] as it is, [B, frames, 3, H, W] -> [B, 3 frames, H, W]."""
    return drawings.flatten(1, -3)


def reading_loss(world: World, reader: nn.Module, count: int, dice: Generator) -> Tensor:
    """The mean cross-entropy over slots, on `count` new drawings."""
    drawings, picks = world.draw(count, dice)
    seen = flatten_frames(decode(encode(drawings)).clamp(-1, 1))
    strength = MOST_NOISE * torch.rand(count, 1, 1, 1, generator=dice, device=dice.device)
    noise = torch.randn(seen.shape, generator=dice, device=dice.device)
    logits = reader(seen + strength * noise)
    losses = [
        cross_entropy(logits[slot], picks[:, i], label_smoothing=0.02)
        for i, slot in enumerate(world.slots)
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def read(reader: nn.Module, drawings: Tensor) -> Tensor:
    """[B, slots]: the likeliest pick for each slot."""
    logits = reader(flatten_frames(drawings.clamp(-1, 1)))
    return torch.stack([slot_logits.argmax(1) for slot_logits in logits.values()], 1)


def accuracy(world: World, reader: nn.Module, drawings: Tensor, picks: Tensor) -> dict[str, float]:
    """The share of drawings whose word is read back, by slot."""
    right = (read(reader, drawings) == picks).float().mean(0)
    return dict(zip(world.slots, right.tolist(), strict=True))


def put_reader(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes float16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.cpu().half().contiguous() for name, weight in weights.items()}
    save_file(halves, folder / READER)


def get_reader(folder: Path, world: World) -> Reader:
    """The reader in float32, for inference."""
    reader = make_reader(world)
    halves = load_file(folder / READER)
    reader.load_state_dict({name: weight.float() for name, weight in halves.items()})
    return reader.eval().requires_grad_(False)
