"""Put what `torch.utils.checkpoint` is given to run into the graph itself.

Without gradients nothing is kept for a backward pass and nothing computed again, so a checkpoint
does what its body does; and a block that it hides is seen by no other stage. Both forms of it
(`use_reentrant`) come as one operator.

    body(x, w): y = linear(x, w); return (y + x,)
    out = tag_activation_checkpoint(body, h, w0); h1 = out[0]    ->    y = linear(h, w0); h1 = y + h
"""

import operator
from typing import Any

import torch
from torch import fx


def inline_checkpoints(gm: fx.GraphModule) -> None:
    """Replace each checkpoint by a copy of its body, with those inside it. What the graph computes
    stays the same."""
    checkpoints = [node for node in gm.graph.nodes if _is_checkpoint(node)]
    while checkpoints:
        for node in checkpoints:
            _inline(gm, node)
        checkpoints = [node for node in gm.graph.nodes if _is_checkpoint(node)]
    gm.recompile()


def _is_checkpoint(node: fx.Node) -> bool:
    return node.target is torch.ops.higher_order.tag_activation_checkpoint


def _inline(gm: fx.GraphModule, node: fx.Node) -> None:
    holder, *operands = node.args
    assert isinstance(holder, fx.Node)
    path = str(holder.target)
    body = operator.attrgetter(path)(gm)
    assert isinstance(body, fx.GraphModule)
    given = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    results: Any = None
    with gm.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "output":
                results = fx.map_arg(inner.args[0], lambda n: given[n])
            elif inner.op != "placeholder":
                copy = gm.graph.node_copy(inner, lambda n: given[n])
                if inner.op == "get_attr":
                    copy.target = f"{path}.{inner.target}"
                given[inner] = copy
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)
    if not holder.users:
        gm.graph.erase_node(holder)
