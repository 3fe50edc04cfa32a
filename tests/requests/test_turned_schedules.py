"""A model whose images go both ways: an inversion ascends, and what is drawn from it descends."""

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from dit_cachegraph.requests.schedule import TURNED
from support.toy_dits import CrossDiT, toy_inputs
from support.toy_runs import compile_toy

NUM_STEPS = 6
DOWN = [90.0 - 5 * step for step in range(NUM_STEPS)]
UP = DOWN[::-1]
BOLD = {"residual_diff_threshold": 0.9, "max_warmup_steps": 1, "Fn_compute_blocks": 1}


@pytest.fixture
def model() -> nn.Module:
    compiled = compile_toy(CrossDiT(0, 4))
    dc.configure(compiled, **BOLD)
    return compiled


def draw(model: nn.Module, seed: int, timesteps: list[float], num_passes: int = 1) -> str:
    """Whether each call of an image was a hit."""
    first, last = (toy_inputs(0, seed=at)["hidden_states"] for at in (seed, seed + 100))
    texts = [toy_inputs(0, seed=seed + at)["encoder_hidden_states"] for at in range(num_passes)]
    for i, timestep in enumerate(timesteps):
        latents = torch.lerp(first, last, i / 20)
        for text in texts:
            call(model, latents, timestep, text)
    done = dc.summary(model).steps[-len(timesteps) * num_passes :]
    return "".join("H" if step.hit else "." for step in done)


@torch.no_grad()
def call(model: nn.Module, latents: Tensor, timestep: float, text: Tensor) -> None:
    model(latents, torch.full((2,), timestep), text)


@pytest.mark.parametrize("num_passes", [1, 2])
def test_the_first_that_turns_computes_a_step_more(model: nn.Module, num_passes: int) -> None:
    def hits(decided: str) -> str:
        return "".join(each * num_passes for each in decided)

    assert draw(model, 1, DOWN, num_passes) == hits(".HHHHH")
    assert draw(model, 2, UP, num_passes) == hits("..HHHH")
    assert TURNED in [step.reason for step in dc.summary(model).steps]
    assert draw(model, 3, UP, num_passes) == hits(".HHHHH")
    assert draw(model, 4, DOWN, num_passes) == hits("..HHHH")
    assert draw(model, 5, DOWN, num_passes) == hits(".HHHHH")


def test_an_image_that_was_given_up_is_none_that_turned(model: nn.Module) -> None:
    """What begins higher up after it has latents of its own, or its very first ones."""
    draw(model, 1, DOWN)
    draw(model, 2, DOWN[2:3])
    assert draw(model, 3, DOWN) == ".HHHHH"
    draw(model, 4, DOWN[1:2])
    assert draw(model, 4, DOWN) == ".HHHHH"
    assert TURNED not in [step.reason for step in dc.summary(model).steps]
