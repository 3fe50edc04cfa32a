"""Python numbers: what a model is called with, and what its modules hold. After the first change
Dynamo hands them over as tensors. AOTAutograd has each of its graphs know all numbers that it
doesn't use, so that with its backends there is a graph for each value."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from support.toy_dits import CrossDiT, GatedBlock, ToyDiT
from support.toy_runs import compile_toy, run, toy_steps


class ScaledBlock(GatedBlock):
    """Its update is scaled by a number that it holds, and by one that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(
        self, h: Tensor, temb: Tensor, e: Tensor | None = None, strength: float = 1.0
    ) -> Tensor:
        update = super().forward(h, temb, e) - h
        return h + update * self.scale * strength


class ScaledDiT(ToyDiT):
    """`strength` is read before the blocks, in each of them and after them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([ScaledBlock() for _ in range(2)])

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        self.strength = strength
        h = hidden_states * (1 + strength)
        return super().forward(h, timestep, encoder_hidden_states) * (2 + strength)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        half = self.strength / 2
        for block in self.blocks:
            h = block(h, temb, e, half)
        return h


def compiled_twice(model: ScaledDiT, **settings: object) -> nn.Module:
    """Compiled with its numbers as they are, and then for any."""
    torch._dynamo.reset()
    compiled = compile_toy(model, **settings)
    (inputs,) = toy_steps([90.0])
    for strength, scale in ((1.0, 1.0), (0.9, 0.9)):
        set_scale(model, scale)
        run(compiled, {**inputs, "strength": strength})
    dc.reset(compiled)
    return compiled


def set_scale(model: ScaledDiT, scale: float) -> None:
    for block in model.blocks:
        block.scale = scale


@pytest.mark.parametrize("inner_backend", ["eager", "aot_eager"])
def test_numbers_that_change_give_what_eager_gives(inner_backend: str) -> None:
    model = ScaledDiT()
    compiled = compiled_twice(model, residual_diff_threshold=0.0, inner_backend=inner_backend)
    num_graphs = counters["stats"]["unique_graphs"]
    inputs = {"strength": 0.5}
    for i, step in enumerate(toy_steps([90.0, 60.0, 30.0])):
        set_scale(model, 0.7 + i / 10)
        expected = run(model, {**step, **inputs})
        torch.testing.assert_close(run(compiled, {**step, **inputs}), expected)
    report = dc.summary(compiled)
    assert report.refusals == ()
    # One function for the blocks, besides prologue and epilogue.
    assert {graph.num_compiled for graph in report.graphs} == {3}
    if inner_backend == "eager":
        assert counters["stats"]["unique_graphs"] == num_graphs


def decided(compiled: nn.Module) -> tuple[bool, str]:
    last = dc.summary(compiled).steps[-1]
    return last.hit, last.reason


def test_a_number_that_a_block_holds_is_one_of_its_weights() -> None:
    torch._dynamo.reset()
    model = ScaledDiT()
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    steps = toy_steps([90.0, 80.0, 70.0, 60.0])
    for scale in (1.0, 0.9, 0.8):
        set_scale(model, scale)
        run(compiled, steps[0])
    num_graphs = counters["stats"]["unique_graphs"]
    dc.reset(compiled)
    for step in steps[:2]:
        run(compiled, step)
    assert decided(compiled) == (True, "hit, threshold >= 1")
    set_scale(model, 0.3)
    run(compiled, steps[2])
    assert decided(compiled) == (False, "the weights changed")
    run(compiled, steps[3])
    assert decided(compiled)[0]
    assert counters["stats"]["unique_graphs"] == num_graphs


def test_a_number_that_the_model_is_given_is_conditioning() -> None:
    """It comes in a new tensor at each call and is known by its value; another one asks for another
    image. What is seen only at the second image: that the conditioning is rebuilt."""
    model = ScaledDiT()
    compiled = compiled_twice(model, residual_diff_threshold=1.0)
    hits = []
    for strength in (0.5, 0.6, 0.7):
        for step in toy_steps([90.0, 80.0, 70.0, 60.0]):
            run(compiled, {**step, "strength": strength})
            hits.append(decided(compiled)[0])
    assert hits[-8:] == [False, True, True, True] * 2


class FramedDiT(CrossDiT):
    """It holds a number before the blocks, and one after them."""

    def __init__(self) -> None:
        super().__init__(num_refiners=0, num_blocks=2)
        self.before, self.after = 1.0, 1.0

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor):
        given = (hidden_states * self.before, timestep, encoder_hidden_states)
        return super().forward(*given) * self.after


@pytest.mark.parametrize(("name", "is_hit"), [("before", False), ("after", True)])
def test_a_number_that_comes_after_the_blocks_changes_nothing_of_what_is_kept(
    name: str, is_hit: bool
) -> None:
    model = FramedDiT()
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for i, step in enumerate(toy_steps([90.0, 80.0, 70.0])):
        setattr(model, name, 1.0 - i / 10)
        run(compiled, step)
    found = [(step.hit, step.reason) for step in dc.summary(compiled).steps]
    assert found[0] == (False, "new image")
    assert found[2] == (is_hit, "hit, threshold >= 1" if is_hit else "the weights changed")


class RepeatedDiT(ToyDiT):
    """What its blocks add is multiplied by the integers that they hold and that it is given."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([ScaledBlock() for _ in range(2)])

    def forward(self, hidden_states, timestep, encoder_hidden_states, times: int = 1) -> Tensor:
        self.times = times
        return super().forward(hidden_states, timestep, encoder_hidden_states)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb, e, self.times)
        return h


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "given"])
def test_an_integer_that_blocks_multiply_by_is_one_of_their_weights(is_held: bool) -> None:
    """Also where something has that size: there are two samples."""
    torch._dynamo.reset()
    model = RepeatedDiT()
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    steps, found = toy_steps([90.0 - 10 * i for i in range(8)]), []
    for step, number in zip(steps, (1, 1, 2, 2, 3, 3, 4, 4), strict=True):
        set_scale(model, number if is_held else 1)
        run(compiled, step if is_held else {**step, "times": number})
        found.append(decided(compiled)[0])
    assert found == [False, True] * 4
