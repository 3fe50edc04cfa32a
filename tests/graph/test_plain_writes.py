"""Residuals that are added in place, in a block and between blocks: cached, exact, and reused just
where the same model without writes in place is. What others can see is refused."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from support.in_place import (
    FIRST,
    Form,
    add_and_clamp,
    add_method,
    add_out,
    addcmul,
    iadd,
    iadd_to_slice,
)
from support.toy_dits import DIM, NUM_TOKENS, GatedBlock, ToyDiT
from support.toy_runs import assert_refused, compile_toy, run, toy_steps

TIMESTEPS = [90.0 - 8 * i for i in range(10)]


def promoted(h: Tensor, y: Tensor) -> Tensor:
    h += y.double()
    return h


def sliced(h: Tensor, y: Tensor) -> Tensor:
    return torch.cat([h[:, :FIRST], h[:, FIRST:] + y[:, FIRST:]], dim=1)


FORMS = [
    pytest.param(iadd, torch.add, id="iadd"),
    pytest.param(add_method, torch.add, id="add_"),
    pytest.param(add_out, torch.add, id="out"),
    pytest.param(iadd_to_slice, sliced, id="slice"),
    pytest.param(addcmul, lambda h, y: torch.addcmul(h, y, y, value=0.5), id="addcmul_"),
    pytest.param(add_and_clamp, lambda h, y: (h + y).clamp(-3.0, 3.0), id="clamp_"),
    pytest.param(promoted, torch.add, id="promoted"),
]


class ResidualBlock(GatedBlock):
    """A gated block whose residual is added by `add`."""

    def __init__(self, add: Form) -> None:
        super().__init__()
        self.add = add

    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        return self.add(h, super().forward(h, temb) - h)


def block_dit(add: Form) -> ToyDiT:
    torch.manual_seed(0)
    return ToyDiT([ResidualBlock(add) for _ in range(4)])


class GlueDiT(ToyDiT):
    """What is made of the text is added by `add` after each of the first blocks."""

    def __init__(self, add: Form) -> None:
        super().__init__([GatedBlock() for _ in range(4)])
        self.add = add
        self.control = nn.Linear(DIM, DIM)

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        control = self.control(e).mean(1, keepdim=True).expand(-1, NUM_TOKENS, -1)
        for i, block in enumerate(self.blocks):
            h = block(h, temb)
            if i < 3:
                h = self.add(h, control)
        return h


def glue_dit(add: Form) -> ToyDiT:
    torch.manual_seed(0)
    return GlueDiT(add)


@torch.no_grad()
def run_image(model: nn.Module, compiled: nn.Module, **settings: object) -> tuple[list, Tensor]:
    """Which steps were reused, and the outputs of all, [steps, batch, tokens, channels]."""
    dc.configure(compiled, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dc.NotCachedWarning)
        outputs = [run(compiled, inputs) for inputs in toy_steps(TIMESTEPS)]
    report = dc.summary(compiled)
    assert report.refusals == ()
    return [step.hit for step in report.steps], torch.stack(outputs)


@pytest.mark.parametrize(("in_place", "plain"), FORMS)
@pytest.mark.parametrize("build", [block_dit, glue_dit])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_is_cached_as_the_model_without_writes(
    build: Callable[[Form], ToyDiT], in_place: Form, plain: Form, threshold: float
) -> None:
    model, other = build(in_place), build(plain)
    settings = {"residual_diff_threshold": threshold, "max_warmup_steps": 2}
    hits, outputs = run_image(model, compile_toy(model), **settings)
    expected_hits, expected = run_image(other, compile_toy(other), **settings)
    assert hits == expected_hits
    assert any(hits) == (threshold > 0)
    torch.testing.assert_close(outputs, expected)
    if threshold == 0:
        eager = torch.stack([run(model, inputs) for inputs in toy_steps(TIMESTEPS)])
        torch.testing.assert_close(outputs, eager)


EVERY_RUN = (iadd_to_slice,)
OTHERS = (iadd, add_method, add_out, addcmul, add_and_clamp, promoted)


@pytest.mark.parametrize("build", [block_dit, glue_dit])
@pytest.mark.parametrize(
    "form", [*EVERY_RUN, *(pytest.param(form, marks=pytest.mark.slow) for form in OTHERS)]
)
def test_under_inductor_at_batch_two(build: Callable[[Form], ToyDiT], form: Form) -> None:
    model = build(form)
    compiled = compile_toy(model, inner_backend="inductor", residual_diff_threshold=0.0)
    for inputs in toy_steps(TIMESTEPS[:3]):
        batch = {name: torch.cat([value, value.flip(-1)]) for name, value in inputs.items()}
        torch.testing.assert_close(run(compiled, batch), run(model, batch))
    (graph,) = dc.summary(compiled).graphs
    assert (graph.num_blocks, graph.refusals) == (4, ())


def test_a_view_that_is_read_later_sees_what_was_written() -> None:
    def write_beside_a_view(h: Tensor, y: Tensor) -> Tensor:
        first = h[:, :FIRST]
        h += y
        return h + first.mean()

    def plain(h: Tensor, y: Tensor) -> Tensor:
        return h + y + (h + y)[:, :FIRST].mean()

    for build in (block_dit, glue_dit):
        model, other = build(write_beside_a_view), build(plain)
        settings = {"residual_diff_threshold": 0.0}
        _, outputs = run_image(model, compile_toy(model), **settings)
        _, expected = run_image(other, compile_toy(other), **settings)
        torch.testing.assert_close(outputs, expected)


class BufferDiT(GlueDiT):
    """Between blocks, a buffer of the model is written to and back."""

    def __init__(self) -> None:
        super().__init__(torch.add)
        self.register_buffer("count", torch.zeros(1))

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb)
            self.count += h.mean()
            h = h + self.count
            self.count.zero_()
        return h


class TextDiT(GlueDiT):
    """Between blocks, the text that the caller gave is written to (through `part`) and back."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__(torch.add)
        self.part = part

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        assert e is not None
        for block in self.blocks:
            h = block(h, temb)
            part = self.part(e)
            part *= 2
            h = h + e.mean()
            part *= 0.5
        return h


UNSOUND = [
    pytest.param(lambda: TextDiT(lambda e: e), "an argument of the model", id="argument"),
    pytest.param(lambda: TextDiT(lambda e: e[:, 1:]), "an argument of the model", id="view"),
    pytest.param(BufferDiT, "an argument of the model", id="buffer"),
]


@pytest.mark.parametrize(("build", "sentence"), UNSOUND)
def test_what_others_can_see_is_refused(build: Callable[[], ToyDiT], sentence: str) -> None:
    torch.manual_seed(0)
    assert_refused(build(), f"writes in place .*{sentence}")
