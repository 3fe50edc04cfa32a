"""What a call draws and what it writes to, however its arguments are told: by position, by name, by
default. Each row is traced by Dynamo and read off its graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dit_cachegraph.graph.node_effects import random_node, written_by

Call = Callable[[Tensor], Tensor]
ATTENTION = F.scaled_dot_product_attention
aten = torch.ops.aten


def traced(call: Call, dynamic: bool | None) -> list[fx.Node]:
    """The nodes of a call's graph."""
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(gm)
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(call, backend=keep, fullgraph=True, dynamic=dynamic)(torch.ones(2, 4, 8))
    (gm,) = graphs
    return [node for node in gm.graph.nodes if node.op != "output"]


def heads(x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Attention as `nn.MultiheadAttention` calls it, with `dropout_p`, two weights and `training`
    last."""
    packed = torch.ones(24, 8)
    return F.multi_head_attention_forward(
        x, x, x, 8, 2, packed, None, None, None, False, *args, **kwargs
    )[0]


def rnn(x: Tensor, dropout: float, train: bool) -> Tensor:
    state, weights = torch.zeros(1, 4, 8), [torch.ones(8, 8)] * 2
    return torch.rnn_tanh(x, state, weights, False, 1, dropout, train, False, False)[0]


DRAWS = {
    "default": lambda x: F.dropout(x),
    "position": lambda x: F.dropout(x, 0.1, True),
    "names": lambda x: F.dropout(input=x, p=0.3),
    "operator": lambda x: torch.dropout(x, 0.3, True),
    "operator_by_names": lambda x: torch.dropout(input=x, p=0.3, train=True),
    "overload": lambda x: aten.dropout.default(x, 0.1, True),
    "native": lambda x: torch.native_dropout(x, 0.2, True)[0],
    "native_by_default": lambda x: torch.native_dropout(x, 0.2, None)[0],
    "alpha": lambda x: F.alpha_dropout(x, 0.2, True),
    "alpha_by_name": lambda x: torch.alpha_dropout(x, 0.2, train=True),
    "feature_alpha_by_name": lambda x: torch.feature_alpha_dropout(x, 0.2, train=True),
    "rrelu_from_zero": lambda x: F.rrelu(x, 0.0, 0.3, True),
    "rrelu_operator": lambda x: torch.rrelu(x, 0.0, 0.3, training=True),
    "attention": lambda x: ATTENTION(x, x, x, None, 0.1),
    "attention_by_names": lambda x: ATTENTION(query=x, key=x, value=x, dropout_p=0.3),
    "heads": lambda x: heads(x, 0.1, torch.ones(8, 8), None),
    "rnn": lambda x: rnn(x, 0.5, True),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "fractional": lambda x: F.fractional_max_pool2d(x, 2, 2),
    "bernoulli_of_zero": lambda x: x.bernoulli(0.0),
    "geometric": lambda x: torch.empty_like(x).geometric_(p=0.5),
}
DRAWS_NOT = {
    "position": lambda x: F.dropout(x, 0.1, False),
    "name": lambda x: F.dropout(x, training=False),
    "probability": lambda x: F.dropout(x, 0.0),
    "probability_by_name": lambda x: F.dropout(x, p=0.0),
    "operator_by_names": lambda x: torch.dropout(input=x, p=0.3, train=False),
    "in_place": lambda x: torch.dropout_(x, 0.3, False),
    "overload": lambda x: aten.dropout.default(x, 0.1, False),
    "native": lambda x: torch.native_dropout(x, 0.2, train=False)[0],
    "alpha": lambda x: F.alpha_dropout(x),
    "alpha_in_place": lambda x: torch.alpha_dropout_(x, 0.2, train=False),
    "rrelu": lambda x: F.rrelu(x),
    "rrelu_in_place": lambda x: torch.rrelu_(x, 0.1, 0.3, False),
    "attention": lambda x: ATTENTION(x, x, x, None, 0.0, True, scale=0.3),
    "attention_by_names": lambda x: ATTENTION(query=x, key=x, value=x, is_causal=True),
    "attention_for_cpu": lambda x: aten._scaled_dot_product_flash_attention_for_cpu(
        x[None], x[None], x[None], 0.0
    )[0],
    "heads_in_evaluation": lambda x: heads(x, 0.1, torch.ones(8, 8), None, False),
    "heads_without": lambda x: heads(
        x, dropout_p=0.0, out_proj_weight=torch.ones(8, 8), out_proj_bias=None
    ),
    "rnn_in_evaluation": lambda x: rnn(x, 0.5, False),
    "rnn_without": lambda x: rnn(x, 0.0, True),
    "max_pool": lambda x: F.max_pool2d(x, 2, 2),
}
WRITES = {
    "position": lambda x: F.relu(x, True),
    "name": lambda x: F.relu(x, inplace=True),
    "names_in_any_order": lambda x: F.elu(alpha=1.0, inplace=True, input=x),
    "a_number": lambda x: F.leaky_relu(x, 0.1, 1),
    "operator": lambda x: torch.relu_(x),
    "operator_by_name": lambda x: torch.relu_(input=x),
    "overload_by_names": lambda x: aten.add_.Tensor(self=x, other=x),
    "dropout": lambda x: F.dropout(x, 0.0, True, True),
    "out": lambda x: torch.clamp(x, 0, out=x),
    "statistics": lambda x: F.batch_norm(torch.ones_like(x), x[0, :, 0], x[0, :, 1], training=True),
    "weights_by_position": lambda x: F.embedding(torch.tensor([1]), x[0], None, 1.0),
}
WRITES_NOT = {
    "position": lambda x: F.relu(x, False),
    "name": lambda x: F.elu(x, inplace=False),
    "zero": lambda x: F.leaky_relu(x, 0.1, 0),
    "another_argument": lambda x: F.dropout(x, 0.0, True),
    "statistics": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "weights": lambda x: F.embedding(torch.tensor([1]), x[0]),
}


def named(calls: dict[str, Call], is_so: bool) -> list[object]:
    return [pytest.param(call, is_so, id=f"{name}-{is_so}") for name, call in calls.items()]


@pytest.mark.parametrize(("call", "is_random"), named(DRAWS, True) + named(DRAWS_NOT, False))
@pytest.mark.parametrize("dynamic", [None, True])
def test_draws(call: Call, is_random: bool, dynamic: bool | None) -> None:
    drawing = [node for node in traced(call, dynamic) if random_node(node) is not None]
    assert len(drawing) == is_random


@pytest.mark.parametrize(("call", "is_writing"), named(WRITES, True) + named(WRITES_NOT, False))
@pytest.mark.parametrize("dynamic", [None, True])
def test_writes(call: Call, is_writing: bool, dynamic: bool | None) -> None:
    nodes = traced(call, dynamic)
    (argument,) = (node for node in nodes if node.name == "l_x_")
    views = {argument, *(node for node in nodes if argument in node.all_input_nodes)}
    written = {target for node in nodes for target in written_by(node)}
    assert bool(written) == is_writing
    assert written <= views
