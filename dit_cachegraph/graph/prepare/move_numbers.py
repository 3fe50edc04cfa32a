"""Move what is computed of Python numbers to where it is read.

After a number that a model is called with has changed once, Dynamo hands it over as a tensor
without sizes, and reads it with `item` at its first use. That tensor may cross a border between two
segments, the number may not; so each reader gets an `item` of its own:

    n = scale.item();  y = blk0(x * n);                     z = blk1(y * n)
    n = scale.item();  y = blk0(x * n);  m = scale.item();  z = blk1(y * m)
"""

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import value_of


def move_numbers(gm: fx.GraphModule) -> None:
    """Give each reader of a number its own copy of all that the number is computed by. What the
    graph computes stays the same."""
    numbers = [node for node in gm.graph.nodes if is_number(node)]
    if not numbers:
        return
    for node in list(gm.graph.nodes):
        if not is_number(node):
            for number in node.all_input_nodes:
                if is_number(number):
                    node.replace_input_with(number, _copied_before(node, number))
    for number in reversed(numbers):
        gm.graph.erase_node(number)
    gm.recompile()


def is_number(node: fx.Node) -> bool:
    """True for a Python number that depends on nothing but numbers among the arguments; on none,
    where Dynamo has found that the compiler needs to know them."""
    return (
        node.op in ("call_method", "call_function")
        and isinstance(value_of(node), torch.SymFloat)
        and all(n.op == "placeholder" or is_number(n) for n in node.all_input_nodes)
    )


def _copied_before(reader: fx.Node, number: fx.Node) -> fx.Node:
    """A copy of `number` and of all that it is computed by, which belongs to the reader's call."""
    made: dict[fx.Node, fx.Node] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node.op == "placeholder":
            return node
        if node not in made:
            inputs = {n: copied(n) for n in node.all_input_nodes}
            with reader.graph.inserting_before(reader):
                made[node] = reader.graph.node_copy(node, lambda n: inputs[n])
            made[node].meta.pop("nn_module_stack", None)
            if "nn_module_stack" in reader.meta:
                made[node].meta["nn_module_stack"] = reader.meta["nn_module_stack"]
        return made[node]

    return copied(number)
