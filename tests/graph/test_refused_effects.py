"""Random numbers and context managers: refused where a skipped block would change what they do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_cachegraph as dc
from support.toy_dits import DIM, GatedBlock, ToyDiT, writing_dit
from support.toy_runs import assert_cached, assert_refused, compile_toy, run, toy_steps

Draw = Callable[[Tensor, bool], Tensor]


def named(*functions: Draw) -> list[object]:
    return [pytest.param(function, id=function.__name__) for function in functions]


class DropoutBlock(nn.Module):
    """Gated by temb; `draw` is one of the ways in which blocks drop things."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return h + torch.tanh(temb) * self.draw(self.linear(h), self.training)


def dropping_dit(draw: Draw) -> ToyDiT:
    torch.manual_seed(0)
    return ToyDiT([DropoutBlock(draw) for _ in range(3)])


def dropout(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, 0.5, training)


def torch_dropout(x: Tensor, training: bool) -> Tensor:
    return torch.dropout(x, 0.5, training)


def noise(x: Tensor, training: bool) -> Tensor:
    return x + torch.rand_like(x) if training else x


def normal_buffer(x: Tensor, training: bool) -> Tensor:
    return x + torch.empty_like(x).normal_() if training else x


def attention_dropout(x: Tensor, training: bool) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if training else 0.0)


def feature_dropout(x: Tensor, training: bool) -> Tensor:
    return F.feature_alpha_dropout(x, 0.5, training)


def log_normal_buffer(x: Tensor, training: bool) -> Tensor:
    return x + torch.empty_like(x).log_normal_().clamp(max=1) if training else x


DRAWS = (dropout, torch_dropout, noise, normal_buffer)
MISSED_DRAWS = (attention_dropout, feature_dropout, log_normal_buffer)
DRAWS_SENTENCE = r"blocks\.0 draws random numbers \(`\w+` at \w+\.py:\d+\).*call `eval\(\)`"


@pytest.mark.parametrize("draw", named(*DRAWS))
def test_random_numbers_in_training(draw: Draw) -> None:
    assert_refused(dropping_dit(draw).train(), DRAWS_SENTENCE)


@pytest.mark.parametrize("draw", named(*MISSED_DRAWS))
def test_random_numbers_of_other_operators(draw: Draw) -> None:
    assert_refused(dropping_dit(draw).train(), DRAWS_SENTENCE)


@pytest.mark.parametrize("draw", named(*DRAWS, *MISSED_DRAWS))
def test_no_random_numbers_in_eval(draw: Draw) -> None:
    assert assert_cached(dropping_dit(draw).eval()).num_blocks == 3


def attend(x: Tensor, dropout_p: float = 0.0) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout_p)


def attend_with_dropout(x: Tensor, dropout_p: float = 0.5) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout_p)


def dropout_of_default(x: Tensor, training: bool, p: float = 0.0) -> Tensor:
    return F.dropout(x, p, True)


def attention_by_default(x: Tensor, training: bool) -> Tensor:
    return attend_with_dropout(x) if training else attend(x)


@pytest.mark.parametrize("draw", named(dropout_of_default, attention_by_default))
@pytest.mark.parametrize("dynamic", [None, True])
def test_probability_that_is_zero_by_default(draw: Draw, dynamic: bool | None) -> None:
    assert assert_cached(dropping_dit(draw).eval(), dynamic).num_blocks == 3


@pytest.mark.parametrize("dynamic", [None, True])
def test_probability_that_is_not_zero_by_default(dynamic: bool | None) -> None:
    assert_refused(dropping_dit(attention_by_default).train(), DRAWS_SENTENCE, dynamic)


class GivenDropoutDiT(ToyDiT):
    """The probability is an attribute that the caller may set between two calls."""

    dropout_p = 0.0

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb) + 0.1 * attend(h, self.dropout_p)
        return h


def test_probability_that_is_zero_no_more() -> None:
    model = GivenDropoutDiT([GatedBlock() for _ in range(3)])
    compiled = compile_toy(model, dynamic=True)
    first, second = toy_steps([90.0, 60.0])
    run(compiled, first)
    assert dc.summary(compiled).refusals == ()
    model.dropout_p = 0.5
    with pytest.warns(dc.NotCachedWarning, match="draws random numbers"):
        actual = run(compiled, second)
    torch.testing.assert_close(actual, run(model, second))


class NoisyLatentsDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        return super().trunk(h + 0.1 * torch.rand_like(h), temb, e)


def test_random_numbers_before_the_blocks() -> None:
    assert assert_cached(NoisyLatentsDiT([GatedBlock() for _ in range(4)])).num_blocks == 4


class AutocastTrunkDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().trunk(h, temb, e)


def autocast_in_the_middle(h: Tensor, t: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = h @ torch.eye(DIM)
    return h + t * mixed


def autocast_to_the_end(h: Tensor, t: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return h + t * (h @ torch.eye(DIM))


class AutocastBlock(GatedBlock):
    """All that it does lies in its contexts, of which Dynamo says nothing inside of its call."""

    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
            return h + temb * self.down(torch.tanh(self.up(h)))


class AutocastEachDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = block(h, temb)
        return h


def test_context_around_the_blocks() -> None:
    assert_refused(
        AutocastTrunkDiT([GatedBlock() for _ in range(4)]),
        "is made in prologue and used in epilogue.*a context manager around several blocks",
    )


def test_context_inside_the_block() -> None:
    assert assert_cached(writing_dit(autocast_in_the_middle)).num_compiled == 3


def test_context_inside_the_block_to_its_end() -> None:
    assert assert_cached(writing_dit(autocast_to_the_end)).num_compiled == 3


def test_contexts_that_are_all_of_the_block() -> None:
    assert assert_cached(ToyDiT([AutocastBlock() for _ in range(4)])).num_compiled == 3


def test_context_around_each_block() -> None:
    assert assert_cached(AutocastEachDiT([GatedBlock() for _ in range(4)])).num_compiled == 3


Glue = Callable[[Tensor], Tensor]


class GlueDiT(ToyDiT):
    """Between the blocks `glue` is called on the temb, which depends on no block."""

    def __init__(self, glue: Glue) -> None:
        super().__init__([GatedBlock() for _ in range(4)])
        self.glue = glue

    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        for block in self.blocks:
            h = block(h, temb + self.glue(temb))
        return h


def mixed_in_autocast(temb: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = (temb / 3) @ temb.mT
    return mixed.float()


def unpacked_in_autocast(temb: Tensor) -> Tensor:
    halves = (temb / 3).chunk(2, dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = [half @ half.mT for half in halves]
    return torch.add(*mixed).float()


def mapped(temb: Tensor) -> Tensor:
    return torch.vmap(torch.sin)(temb)


@pytest.mark.parametrize("glue", [mixed_in_autocast, unpacked_in_autocast, mapped])
def test_context_between_blocks_keeps_what_is_in_it(glue: Glue) -> None:
    # The glue is part of each block but the first, before which it is the prologue's.
    assert assert_cached(GlueDiT(glue)).num_compiled == 4


def test_glue_without_a_context_makes_no_variants() -> None:
    assert assert_cached(GlueDiT(lambda temb: torch.tanh(temb / 3))).num_compiled == 3


class MaskBlock(nn.Module):
    """Python's operator module names `&` and `|` with an underscore."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.tensor(0.5))

    def forward(self, h: Tensor, temb: Tensor, mask: Tensor) -> Tensor:
        return h + self.step * temb * ((mask & mask) | mask)


class MaskedDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        mask = h[:, :, :1] > -10
        for block in self.blocks:
            h = block(h, temb, mask)
        return h


def test_operators_that_end_in_an_underscore_write_nothing() -> None:
    assert assert_cached(MaskedDiT([MaskBlock() for _ in range(3)])).num_blocks == 3
