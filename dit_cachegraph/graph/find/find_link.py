"""Recognise a graph that is one block of a list, and all of it: a link.

A block has a graph of its own where it was compiled alone, or where Dynamo gave up the code that
calls it. Which module is being compiled, and whose block it is, tells the stack of the call during
which Dynamo compiles. A part of a block, or what is left of one after a graph break, is no link.

    model.forward | block.compiled call | graph      the graph is `blocks.0`, and all of it
"""

from torch import fx, nn

from dit_cachegraph.call_stack import module_being_compiled, outermost_module
from dit_cachegraph.module_lists import outermost_lists


def find_link(gm: fx.GraphModule) -> nn.Module | None:
    """The block that this graph is all of; None where it is anything else."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    block, model = module_being_compiled(), outermost_module()
    if reason is None or reason.graph_break or block is None or model is None or block is model:
        return None
    items = (item for blocks in outermost_lists(model).values() for item in blocks)
    return block if any(item is block for item in items) else None
