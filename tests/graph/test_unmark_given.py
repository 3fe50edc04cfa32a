"""A parameter that the caller gives is what it is given as: conditioning, and no weight of the
model, which is known by its weights."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn
from torch._guards import GuardSource

import dit_cachegraph as dc
from dit_cachegraph.graph.fx_utils import WEIGHT_MARK, is_weight
from dit_cachegraph.graph.prepare.unmark_given import unmark_given
from support.toy_dits import GatedBlock, ReadingDiT
from support.toy_runs import compile_toy, run, toy_steps

ANGLES = [90.0, 80.0, 70.0]


def reading_dit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ReadingDiT([GatedBlock() for _ in range(3)])


def marked(tensor: Tensor) -> Tensor:
    """As for CUDA graphs."""
    torch._dynamo.mark_static_address(tensor)
    return tensor


def of_a_buffer(tensor: Tensor) -> Tensor:
    owner = nn.Module()
    owner.register_buffer("text", tensor)
    return owner.text


GIVEN = [nn.Parameter, marked, of_a_buffer]


@pytest.mark.parametrize("given", GIVEN)
def test_it_tells_passes_of_guidance_apart(given):
    compiled = compile_toy(reading_dit(), residual_diff_threshold=1.0)
    texts = [given(torch.randn(2, 4, 8)) for _ in range(2)]
    for inputs in toy_steps(ANGLES):
        for text in texts:
            run(compiled, {**inputs, "encoder_hidden_states": text})
    report = dc.summary(compiled)
    assert [step.request for step in report.steps] == ["#1", "#2"] * 3
    assert [step.hit for step in report.steps] == [False] * 2 + [True] * 4


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_settings_from_before_the_first_call_hold(given, inner_backend):
    """Each of two models has its own, also where both are given one parameter."""
    text = given(torch.randn(2, 4, 8))
    models = [reading_dit(seed) for seed in (0, 1)]
    options = {"residual_diff_threshold": 1.0, "inner_backend": inner_backend}
    compiled = [compile_toy(model, **options) for model in models]
    dc.configure(models[0], enabled=False)
    for inputs in toy_steps(ANGLES):
        for model, of_it in zip(models, compiled, strict=True):
            output = run(of_it, {**inputs, "encoder_hidden_states": text})
            if model is models[0]:
                expected = run(model, {**inputs, "encoder_hidden_states": text})
                torch.testing.assert_close(output, expected)
    hits = [[step.hit for step in dc.summary(model).steps] for model in models]
    assert hits == [[False] * 3, [False, True, True]]


def test_where_all_parameters_are_arguments_they_are_the_weights():
    def call(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, kwargs=inputs)

    model = reading_dit()
    weights = dict(model.named_parameters())
    options = {"inner_backend": "eager", "Fn_compute_blocks": 1, "max_warmup_steps": 0}
    compiled = torch.compile(
        call, backend="cachedit", options={**options, "residual_diff_threshold": 1.0}
    )
    first, second, third = toy_steps(ANGLES)
    with torch.no_grad():
        for inputs in (first, second):
            compiled(weights, inputs)
        weights["blocks.1.up.weight"].mul_(2)
        torch.testing.assert_close(compiled(weights, third), call(weights, third))
    steps = dc.summary(model).steps
    assert [step.hit for step in steps] == [False, True, False]
    assert steps[-1].reason == "the weights changed"


@pytest.mark.parametrize("guarded", [s for s in GuardSource if s.name.endswith("_MODULE")])
def test_a_weight_in_any_kind_of_module_stays_one(guarded):
    """Also in one that FSDP has wrapped."""
    graph = fx.Graph()
    for name, source in (("own", guarded), ("given", GuardSource.LOCAL)):
        node = graph.placeholder(name)
        node.meta["tensor_dict"] = {WEIGHT_MARK: "unguarded", "kept": True}
        node.meta["grapharg"] = SimpleNamespace(source=SimpleNamespace(guard_source=source))
    graph.output(())
    gm = fx.GraphModule(nn.Module(), graph)
    unmark_given(gm)
    own, given = gm.graph.find_nodes(op="placeholder")
    assert (is_weight(own), is_weight(given)) == (True, False)
    assert given.meta["tensor_dict"] == {"kept": True}
