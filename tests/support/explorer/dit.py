"""The diffusion transformer that the state explorer drives: tiny, with the arguments of FLUX.

Its residuals differ a lot between latents, prompts and timesteps, so that one which was drawn with
by the wrong image shows in the output.
"""

import math

import torch
from torch import Tensor, nn

DIM = 8
NUM_BLOCKS = 4
FRAME_TOKENS = 4  # Image-to-video: these tokens of the latents stand still, at timestep 0.


class ExploredBlock(nn.Module):
    """Adds what depends on everything; `lane` picks its gate out of a table. A lane out of range
    makes the block raise when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(DIM, 2 * DIM)
        self.mix, self.text = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.gates = nn.Parameter(torch.randn(2, DIM))
        self.register_buffer("lane", torch.zeros(1, dtype=torch.int64))

    def forward(
        self, hidden_states: Tensor, temb: Tensor, text: Tensor, position_ids: Tensor
    ) -> Tensor:
        scale, shift = self.modulation(temb).chunk(2, dim=-1)
        told = self.text(text).mean(dim=1, keepdim=True)
        x = torch.tanh(self.mix(hidden_states * (1 + scale)) + told + position_ids + shift)
        return hidden_states + x * nn.functional.embedding(self.lane, self.gates)


class ExploredDiT(nn.Module):
    """hidden_states (batch, tokens, DIM); timestep (batch,) or (batch, tokens), float or integer;
    encoder_hidden_states (batch, words, DIM); position_ids (tokens, DIM); guidance (batch,)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.proj_in, self.proj_out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.time_in, self.guidance_in = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList(ExploredBlock() for _ in range(NUM_BLOCKS))
        self.requires_grad_(False)

    def enter(
        self, hidden_states: Tensor, timestep: Tensor, guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the first block is called with: the stream and the embedding of time."""
        time = self.time_in(_waves(timestep.float() / 1000))
        time = time if time.dim() == 3 else time[:, None]
        temb = time + self.guidance_in(_waves(guidance / 10))[:, None]
        return self.proj_in(hidden_states), temb

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        position_ids: Tensor,
        guidance: Tensor,
        return_dict: bool = True,
    ) -> dict[str, Tensor] | tuple[Tensor]:
        h, temb = self.enter(hidden_states, timestep, guidance)
        for block in self.blocks:
            h = block(h, temb, encoder_hidden_states, position_ids)
        out = self.proj_out(h)
        return {"sample": out} if return_dict else (out,)


def _waves(angle: Tensor) -> Tensor:
    """[..., DIM] sines and cosines of a number around 1, as timesteps are embedded."""
    phases = angle[..., None] * torch.arange(1, DIM // 2 + 1) * (math.pi / 4)
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=-1)
