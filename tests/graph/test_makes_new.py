"""Which graphs can't give back an input, so that nothing around their compiled code is needed."""

import pytest
import torch
from torch import nn

from dit_cachegraph.graph.cut.makes_new import makes_only_new_tensors

X = torch.arange(8.0).reshape(2, 4)


def graph_of(function, *inputs, dynamic=False):
    """What Dynamo hands to a backend."""
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm.graph)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(function, backend=keep, fullgraph=True, dynamic=dynamic)(*inputs)
    (graph,) = graphs
    return graph


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + 1,
        lambda x: x * torch.tanh(x),
        lambda x: torch.cat([x]),
        lambda x: x.clone(),
        lambda x: nn.functional.linear(x, x),
        lambda x: (x + 1).view(-1),
        lambda x: (x + 1).reshape(4, 2).contiguous().to(torch.float32),
        lambda x: (x + 1).chunk(2, dim=1),
        lambda x: (x + 1, nn.functional.layer_norm(x, (4,))),
        lambda x: torch.zeros(3),
    ],
)
def test_new_tensors(function):
    assert makes_only_new_tensors(graph_of(function, X), is_last=False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1, x.view(-1)),
        lambda x: (x + 1, x.t().contiguous()),
        lambda x: (x + 1, x.contiguous()),
        lambda x: (x + 1, x.to(torch.float32)),
        lambda x: (x + 1, x.reshape(4, 2)),
        lambda x: (x + 1, *x.chunk(2)),
        lambda x: (x + 1, nn.functional.dropout(x, 0.5, False)),
        lambda x: (x + 1, torch.broadcast_tensors(x, x + 1)[0]),
    ],
)
def test_what_may_be_an_input(function):
    assert not makes_only_new_tensors(graph_of(function, X), is_last=False)


def test_an_input_itself():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = X
    graph.output((x,))
    assert not makes_only_new_tensors(graph, is_last=False)


def write(x):
    y = x + 1
    x.mul_(2)
    return y


def draw(x):
    return x + torch.rand_like(x)


def in_autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = x @ x.t()
    return y + 1


@pytest.mark.parametrize("function", [write, draw, in_autocast])
def test_effects(function):
    assert not makes_only_new_tensors(graph_of(function, X.clone()), is_last=False)


def test_sizes_that_vary_are_marked_where_the_caller_gets_them():
    graph = graph_of(lambda x: x + 1, X, dynamic=True)
    assert makes_only_new_tensors(graph, is_last=False)
    assert not makes_only_new_tensors(graph, is_last=True)
    assert makes_only_new_tensors(graph_of(lambda x: x + 1, X), is_last=True)
