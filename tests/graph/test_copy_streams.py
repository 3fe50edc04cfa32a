"""Latents that the first block is given as they came: whatever their layout, the steps decide and
give what they do with contiguous ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.toy_dits import DIM, NUM_TEXT_TOKENS, NUM_TOKENS, GatedBlock, JointBlock, ToyDiT

Layout = Callable[[Tensor], Tensor]
# Inductor asserts sizes and strides of every input of every segment.
CHECKED = {"size_asserts": True, "alignment_asserts": True}
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.3}
RULES = ({"rule": "dbcache", **SETTINGS}, {"rule": "dbprune", **SETTINGS}, {})


class BareDiT(ToyDiT):
    """Nothing is made of the latents before the blocks."""

    def __init__(self, blocks: list[nn.Module] | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(blocks or [GatedBlock() for _ in range(5)])

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.trunk(hidden_states, self.embed(timestep), text)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
        return h


class BareJointDiT(BareDiT):
    """The text enters the blocks as it came as well, and is carried."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__([JointBlock() for _ in range(5)])

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            e, h = block(h, e, temb)
        return h + e.mean()


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def sliced(x: Tensor) -> Tensor:
    return torch.cat([x, x], dim=-1)[..., :DIM]


def tokens_first(x: Tensor) -> Tensor:
    """Contiguous, with another stride than usual where there is one sample."""
    return x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)


def with_gradient(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def broadcast(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


def run_image(
    make: Callable[[], nn.Module], layout: Layout, batch: int = 1, **settings: object
) -> tuple[list[bool], list[Tensor]]:
    """(whether each step was a hit, the outputs) of eight steps of a new model, with the same
    latents and text in that layout."""
    torch._dynamo.reset()
    model = torch.compile(make(), backend="cachedit", options=settings)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, NUM_TOKENS, DIM, generator=generator)
    text = layout(torch.randn(batch, NUM_TEXT_TOKENS, DIM, generator=generator))
    outputs = []
    for i in range(8):
        with torch.no_grad():
            outputs.append(model(layout(x), torch.full((batch,), 90.0 - 8 * i), text))
        x = x * 0.97
    return [step.hit for step in dc.summary(model).steps], outputs


LAYOUTS = [transposed, sliced, tokens_first, with_gradient]


@pytest.mark.parametrize("settings", RULES, ids=lambda rule: rule.get("rule", "default"))
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [BareDiT, BareJointDiT])
def test_decisions_and_outputs_of_any_layout(
    make: Callable[[], nn.Module], layout: Layout, settings: dict[str, object]
) -> None:
    decided, expected = run_image(make, contiguous, inner_backend="eager", **settings)
    actual = run_image(make, layout, inner_backend="eager", **settings)
    assert any(decided)
    assert actual[0] == decided
    torch.testing.assert_close(actual[1], expected)


@pytest.mark.parametrize("layout", [*LAYOUTS, broadcast], ids=lambda f: f.__name__)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_hits_under_inductor_with_its_checks(layout: Layout, batch: int) -> None:
    decided, actual = run_image(BareDiT, layout, batch, inductor=CHECKED, **SETTINGS)
    usual = {"inner_backend": "eager", **SETTINGS}
    _, expected = run_image(BareDiT, lambda x: layout(x).contiguous(), batch, **usual)
    assert any(decided)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", [contiguous, *LAYOUTS[:3]], ids=lambda f: f.__name__)
def test_one_function_for_all_blocks(layout: Layout) -> None:
    model = torch.compile(BareDiT(), backend="cachedit", options={"inner_backend": "eager"})
    with torch.no_grad():
        latents, text = torch.ones(1, NUM_TOKENS, DIM), torch.ones(1, NUM_TEXT_TOKENS, DIM)
        model(layout(latents), torch.tensor([90.0]), text)
    # The blocks, the prologue, and an epilogue that is empty.
    assert dc.summary(model).graphs[0].num_compiled == 3


class WritingDiT(BareDiT):
    """The caller's latents are halved where they are before the blocks read them."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        hidden_states.mul_(0.5)
        return super().forward(hidden_states, timestep, text)


def test_write_before_the_blocks_is_to_the_callers_own() -> None:
    model = WritingDiT()
    compiled = torch.compile(model, backend="cachedit", options={"inner_backend": "eager"})
    own = transposed(torch.ones(1, NUM_TOKENS, DIM))
    with torch.no_grad():
        actual = compiled(own, torch.tensor([90.0]), torch.zeros(1, NUM_TEXT_TOKENS, DIM))
        halved = transposed(torch.ones(1, NUM_TOKENS, DIM))
        expected = model(halved, torch.tensor([90.0]), torch.zeros(1, NUM_TEXT_TOKENS, DIM))
    assert dc.summary(compiled).refusals == ()
    torch.testing.assert_close((actual, own), (expected, halved))
