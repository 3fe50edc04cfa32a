"""Which segments no CUDA graph can stand for, each beside a neighbour for which one can."""

import pytest
import torch
from torch import nn

from dit_cachegraph.graph.cut.why_eager import why_eager
from dit_cachegraph.graph.structure import structure_of

CPU = torch.device("cpu")
X = torch.arange(8.0).reshape(2, 4)


def cause_for(function):
    """What is said of the whole graph of a function of a tensor."""
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm.graph)
        return gm.forward

    with torch.no_grad():
        torch.compile(function, backend=keep, fullgraph=True, dynamic=False)(X.clone())
    (graph,) = graphs
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return why_eager(structure_of(nodes), CPU)


def writes_to_its_own(x):
    y = x + 1
    y[0] = 2.0
    return y


def writes_to_a_view_of_what_it_is_given(x):
    x.view(-1)[0] = 2.0
    return x + 1


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x + 1, None),
        (writes_to_its_own, None),
        (lambda x: x.add_(1), "it writes in place to what it is given at test_why_eager.py:"),
        (writes_to_a_view_of_what_it_is_given, "it writes in place to what it is given at"),
        (lambda x: nn.functional.dropout(x, 0.5, training=False), None),
        (lambda x: nn.functional.dropout(x, 0.5, training=True), "it draws random numbers at"),
        (lambda x: x + torch.rand(4), "it draws random numbers at"),
        (lambda x: x + torch.arange(4), None),
        (lambda x: x + torch.zeros_like(torch.arange(4, device="meta"), device="cpu"),
         "it works on meta at test_why_eager.py:"),
    ],
)  # fmt: skip
def test_why_eager(function, why):
    found = cause_for(function)
    assert found is None if why is None else found.startswith(why)
