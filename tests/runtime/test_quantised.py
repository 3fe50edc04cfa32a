"""Quantised weights: tensors of another class, which hold tensors of their own, or bytes that a
layer reads. A write to one of those is a changed weight, also where the weight itself doesn't count
it. The libraries' own layers are in `test_quantised_kinds.py`."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from links.linked import SwitchedDiT, call, compile_blocks, watch
from support.halved_weight import HalvedWeight, halve
from support.quantised_layers import (
    OperatorLinear,
    PackedLinear,
    PointerLinear,
    RepointedLinear,
    StatefulLinear,
)
from support.toy_dits import DIM, gated_dit
from support.toy_runs import assert_refused, compile_toy, run, toy_steps


def last_hits(model: nn.Module, number: int) -> list[bool]:
    return [step.hit for step in dc.summary(model).steps[-number:]]


def test_a_write_inside_of_a_weight_computes():
    model, plain = gated_dit(4), gated_dit(4)
    halve(model)
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    first, second, third, fourth = toy_steps([90.0, 80.0, 70.0, 60.0])
    for inputs in (first, second):
        run(compiled, inputs)
    inner = model.blocks[2].up.weight.inner
    inner.mul_(3)
    with torch.no_grad():
        plain.blocks[2].up.weight.mul_(3)
    torch.testing.assert_close(run(compiled, third), run(plain, third))
    run(compiled, fourth)
    assert last_hits(compiled, 4) == [False, True, False, True]


def double(model: nn.Module, plain: nn.Module) -> None:
    """All weights, as `Module.to` moves them."""
    model._apply(lambda w: HalvedWeight(2 * w.inner) if isinstance(w, HalvedWeight) else 2 * w)
    plain._apply(lambda w: 2 * w)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_model_whose_weights_hold_others_can_be_moved(is_frozen):
    """Torch swaps them with others, which it refuses where anybody holds them weakly."""
    model, plain = gated_dit(4), gated_dit(4)
    halve(model)
    compiled = compile_toy(model, residual_diff_threshold=1.0, frozen_weights=is_frozen)
    first, second, third, fourth = toy_steps([90.0, 80.0, 70.0, 60.0])
    for inputs in (first, second):
        run(compiled, inputs)
    double(model, plain)
    run(compiled, third)
    assert last_hits(compiled, 3) == [False, True, True]
    dc.configure(compiled, enabled=False)
    torch.testing.assert_close(run(compiled, fourth), run(plain, fourth))


def linked_up_to_a_hit() -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """A model whose blocks are compiled one by one, after a computed step and a reused one, and the
    steps that come next."""
    model = SwitchedDiT()
    halve(model)
    compile_blocks(model, residual_diff_threshold=1.0)
    watch(model)
    first, second, *others = toy_steps([60.0, 50.0, 40.0, 30.0])
    call(model, first)
    call(model, second)
    return model, others


def test_where_blocks_are_compiled_one_by_one_it_computes_too():
    model, (third, fourth) = linked_up_to_a_hit()
    model.blocks[2].up.weight.inner.mul_(3)
    call(model, third)
    call(model, fourth)
    assert last_hits(model, 4) == [False, True, False, True]


def test_where_blocks_are_compiled_one_by_one_it_can_be_moved_too():
    (model, (third, fourth)), plain = linked_up_to_a_hit(), SwitchedDiT()
    double(model, plain)
    call(model, third)
    assert last_hits(model, 3) == [False, True, True]
    dc.configure(model, enabled=False)
    torch.testing.assert_close(call(model, fourth), call(plain, fourth))


def test_where_blocks_are_compiled_one_by_one_a_replaced_one_computes():
    (model, (third, fourth)), plain = linked_up_to_a_hit(), SwitchedDiT()
    inner = model.blocks[2].up.weight.inner
    model.blocks[2].up.weight = nn.Parameter(HalvedWeight(3 * inner), requires_grad=False)
    with torch.no_grad():
        plain.blocks[2].up.weight.mul_(3)
    torch.testing.assert_close(call(model, third), call(plain, third))
    call(model, fourth)
    assert last_hits(model, 4) == [False, True, False, True]


def with_layers(make: Callable[[nn.Linear], nn.Module], num_blocks: int = 4) -> nn.Module:
    model = gated_dit(num_blocks)
    for block in model.blocks:
        block.up = make(block.up)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "part_of"),
    [
        (PackedLinear, lambda layer: layer.weight),
        (StatefulLinear, lambda layer: layer.weight),
        (StatefulLinear, lambda layer: layer.state.scale),
        (OperatorLinear, lambda layer: layer.weight),
    ],
    ids=["packed", "scaled by an object", "the object", "by an operator that writes"],
)
def test_layers_of_other_kinds(make, part_of):
    num_compiled = []
    for num_blocks in (4, 6):
        torch._dynamo.reset()
        model = with_layers(make, num_blocks)
        compiled = compile_toy(model, residual_diff_threshold=1.0)
        first, second, third, fourth = toy_steps([90.0, 80.0, 70.0, 60.0])
        assert torch.equal(run(compiled, first), run(model, first))
        run(compiled, second)
        part = part_of(model.blocks[2].up)
        before = run(model, third)
        part.copy_(3 * part)
        expected = run(model, third)
        assert not torch.allclose(expected, before)
        assert torch.equal(run(compiled, third), expected)
        run(compiled, fourth)
        assert last_hits(compiled, 4) == [False, True, False, True]
        num_compiled.append(dc.summary(compiled).graphs[0].num_compiled)
    assert num_compiled[0] == num_compiled[1]


IS_BEFORE_2_14 = torch.torch_version.TorchVersion(torch.__version__) < "2.14"
WRITE = "set_" if IS_BEFORE_2_14 else "shallow_copy_data_"
BREAK = "Unsupported method call" if IS_BEFORE_2_14 else "call to a callable object with no tr"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            RepointedLinear,
            rf"writes in place \(`{WRITE}` at quantised_layers.py:\d+\) to `\w+`, an arg",
        ),
        (PointerLinear, rf"graph break .* \(at quantised_layers.py:\d+: {BREAK}"),
    ],
)
def test_layers_that_are_refused(make, sentence):
    torch._dynamo.reset()
    assert_refused(with_layers(make), sentence)


def test_layers_of_foreign_code_that_are_kept_whole():
    torch._dynamo.reset()
    model = with_layers(PointerLinear)
    with dc.keep_whole(
        PointerLinear, "forward", fake=lambda x: x.new_empty(*x.shape[:-1], 2 * DIM)
    ):
        compiled = compile_toy(model, residual_diff_threshold=1.0)
        first, second, third = toy_steps([90.0, 80.0, 70.0])
        torch.testing.assert_close(run(compiled, first), run(model, first))
        run(compiled, second)
        model.blocks[2].up.weight.mul_(3)
        torch.testing.assert_close(run(compiled, third), run(model, third))
        assert last_hits(compiled, 3) == [False, True, False]
