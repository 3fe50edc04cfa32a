"""What blocks hand on beside their stream, in its shape, is no stream, though it is read later."""

import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, ToyDiT
from support.toy_runs import compile_toy, run, toy_steps


class BesideBlock(nn.Module):
    """Adds the same to whatever it is given, so that a hit is exact, and tells where that is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        h = h + self.linear(torch.ones_like(h))
        return h, torch.zeros_like(h) + 1


class BesideDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        found = []
        for block in self.blocks:
            h, beside = block(h, temb)
            found.append(beside.mean())
        return h * torch.stack(found).mean()


def test_the_residual_is_that_of_the_stream() -> None:
    torch.manual_seed(0)
    model = BesideDiT([BesideBlock() for _ in range(4)])
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for inputs in toy_steps([90.0, 60.0, 30.0]):
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs))
    assert [step.hit for step in dc.summary(compiled).steps] == [False, True, True]
