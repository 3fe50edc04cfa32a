"""Images of a toy whose blocks read a text, drawn a step at a time, as a server does."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from support.toy_dits import GatedBlock, ReadingDiT, toy_inputs
from support.toy_runs import compile_toy

NUM_STEPS = 10
SETTINGS = {"residual_diff_threshold": 0.2, "max_warmup_steps": 2}


def compile_reading(block: type[GatedBlock] = GatedBlock) -> nn.Module:
    """Four blocks, compiled with `SETTINGS`, which reuse some steps of an image."""
    torch.manual_seed(0)
    return compile_toy(ReadingDiT([block() for _ in range(4)]).eval(), **SETTINGS)


def denoise(
    model: nn.Module,
    seed: int = 0,
    text: Tensor | None = None,
    num_steps: int = NUM_STEPS,
    stride: float = 9.0,
    negative: Tensor | None = None,
) -> Iterator[Tensor]:
    """An image, a step at a time: its latents. The timestep falls from 90 by `stride` degrees. With
    a `negative` text each step is guided, by a second pass."""
    given = toy_inputs(90.0, seed=seed)
    if text is not None:
        given["encoder_hidden_states"] = text
    for i in range(num_steps):
        given["timestep"] = torch.full((2,), 90.0 - stride * i)
        with torch.no_grad():
            noise = model(**given)
            if negative is not None:
                away_from = model(**{**given, "encoder_hidden_states": negative})
                noise = away_from + 2.0 * (noise - away_from)
            given["hidden_states"] = given["hidden_states"] - 0.02 * noise
        yield given["hidden_states"]
