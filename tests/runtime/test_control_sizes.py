"""A control whose size is written in other symbols than that of the stream which it enters."""

import pytest
import torch
from torch import Tensor

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, ToyDiT
from support.toy_runs import compile_toy

NUM_TOKENS, NUM_OF_CONTROL = 8, 7  # Of both the first half is 4.


class HalvedDiT(ToyDiT):
    """The first half of the tokens runs through the blocks, as on a rank of two, and the first half
    of the control enters each."""

    def forward(self, latents: Tensor, timestep: Tensor, control: Tensor) -> Tensor:
        temb = self.embed(timestep)
        added = 0.1 * control.chunk(2, dim=1)[0]
        first, second = self.proj_in(latents).chunk(2, dim=1)
        for block in self.blocks:
            first = block(first + added, temb)
        return self.proj_out(torch.cat([first, second], dim=1))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_a_control_of_other_symbols_is_compared(dynamic: bool) -> None:
    torch.manual_seed(0)
    model = HalvedDiT([GatedBlock() for _ in range(4)]).eval().requires_grad_(False)
    compiled = compile_toy(model, dynamic, residual_diff_threshold=1e9)
    latents, control = torch.randn(1, NUM_TOKENS, DIM), torch.randn(1, NUM_OF_CONTROL, DIM)
    for step in range(4):
        if step == 3:
            control.mul_(-1)
        inputs = (latents * (1 - step / 10), torch.full((1,), 90.0 - step), control)
        with torch.no_grad():
            output, expected = compiled(*inputs), model(*inputs)
    last = dc.summary(compiled).steps
    assert [step.hit for step in last] == [False, True, True, False]
    assert last[-1].reason == "a control changed by 200%"
    torch.testing.assert_close(output, expected)
