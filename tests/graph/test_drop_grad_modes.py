"""Models that turn gradients on by themselves: under `torch.no_grad` they are compiled as if they
did not, as by torch.compile alone."""

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

import dit_cachegraph as dc
from dit_cachegraph.graph.prepare.drop_grad_modes import drop_grad_modes
from dit_cachegraph.models import REGISTRY
from support.toy_dits import GatedBlock, ToyDiT
from support.toy_runs import assert_cached, compile_toy, run, toy_steps


class GradBlock(GatedBlock):
    def forward(self, h: Tensor, temb: Tensor, e: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            return h + temb * self.down(F.silu(self.up(h)))


class GradTrunkDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        with torch.enable_grad():
            return super().trunk(h, temb, e)


class LeftOnDiT(ToyDiT):
    def trunk(self, h: Tensor, temb: Tensor, e: Tensor | None) -> Tensor:
        torch.set_grad_enabled(True)
        return super().trunk(h, temb, e)


def of_blocks(kind: type[GatedBlock]) -> list[GatedBlock]:
    torch.manual_seed(0)
    return [kind() for _ in range(4)]


IN_EACH, AROUND_ALL = ToyDiT(of_blocks(GradBlock)), GradTrunkDiT(of_blocks(GatedBlock))


@pytest.mark.parametrize("model", [IN_EACH, AROUND_ALL], ids=["in_each", "around_all"])
@pytest.mark.parametrize("inner_backend", ["eager", "inductor"])
def test_it_is_cached_and_nothing_that_is_kept_has_a_past(model, inner_backend) -> None:
    assert assert_cached(model, inner_backend=inner_backend).num_compiled == 3
    compiled = compile_toy(model, residual_diff_threshold=1.0)
    for inputs in toy_steps([90.0, 60.0, 30.0]):
        output = run(compiled, inputs)
    assert dc.summary(compiled).num_hits > 0
    assert not output.requires_grad
    kept = next(REGISTRY.of_module(model).requests.held.least_recent()).state
    assert kept is not None
    assert not any(tensor.requires_grad for tensor in kept.tensors())


def test_what_the_call_leaves_on_stays_on() -> None:
    compiled = compile_toy(LeftOnDiT(of_blocks(GatedBlock)))
    (inputs,) = toy_steps([90.0])
    with torch.no_grad():
        output = compiled(**inputs)
        assert torch.is_grad_enabled()
    assert not output.requires_grad
    assert dc.summary(compiled).is_cached


def test_a_graph_that_computes_gradients_keeps_them_on() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, (True,))
    y = graph.call_method("requires_grad_", (graph.call_method("detach", (x,)),))
    total = graph.call_method("sum", (graph.call_method("square", (y,)),))
    gradient = graph.call_function(torch.autograd.grad, (total, y))
    graph.call_function(torch._C._set_grad_enabled, (False,))
    graph.output(gradient)
    gm = fx.GraphModule({}, graph)
    drop_grad_modes(gm)
    with torch.no_grad():
        (found,) = gm(torch.ones(3))
    torch.testing.assert_close(found, torch.full((3,), 2.0))
