"""Quantised weights: tensors of another class, which hold tensors of their own. A write to one of
those is a changed weight, also where the weight itself doesn't count it."""

import pytest
import torch
from torch import nn

import dit_cachegraph as dc
from links.linked import SwitchedDiT, call, compile_blocks, watch
from support import tiny_models
from support.halved_weight import halve
from support.running import compile_cached, relative_error, run_all
from support.tiny_models import FLUX, WAN, TinyModel, trajectory
from support.toy_dits import gated_dit
from support.toy_runs import compile_toy, run, toy_steps

BOLD = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2, "Fn_compute_blocks": 1}


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


def test_where_blocks_are_compiled_one_by_one_it_computes_too():
    model = SwitchedDiT()
    halve(model)
    compile_blocks(model, residual_diff_threshold=1.0)
    watch(model)
    first, second, third, fourth = toy_steps([60.0, 50.0, 40.0, 30.0])
    call(model, first)
    call(model, second)
    model.blocks[2].up.weight.inner.mul_(3)
    call(model, third)
    call(model, fourth)
    assert last_hits(model, 4) == [False, True, False, True]


def quantised(tiny: TinyModel, depth: int) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_models.build_flux(1, depth - 1) if tiny is FLUX else tiny.build(depth)
    for name in tiny.block_lists:
        quantization.quantize_(getattr(model, name), quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_int8_weights_of_torchao(tiny, inner_backend):
    num_compiled = []
    for depth in (3, 5):
        torch._dynamo.reset()
        model = quantised(tiny, depth)
        inputs = tiny.make_inputs(model, batch=1, size=4, text_tokens=6, seed=0)
        steps = list(trajectory(tiny, inputs, 8))
        compiled = compile_cached(model, inner_backend, enabled=False)
        with torch.no_grad():
            expected = [model(**step)[0] for step in steps]
        for ran, output in zip(run_all(compiled, steps), expected, strict=True):
            assert relative_error(ran.output, output) < 1e-5
        dc.reset(compiled)
        dc.configure(compiled, enabled=True, **BOLD)
        run_all(compiled, steps[:5])
        assert last_hits(compiled, 5) == [False, False, True, True, True]
        block = getattr(model, tiny.block_lists[-1])[1]
        weight = next(p for p in block.parameters() if hasattr(p, "qdata"))
        weight.qdata.copy_(weight.qdata)
        run_all(compiled, steps[5:])
        assert last_hits(compiled, 3) == [False, True, True]
        num_compiled.append(dc.summary(compiled).graphs[0].num_compiled)
    assert num_compiled[0] == num_compiled[1]
