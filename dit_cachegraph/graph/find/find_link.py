"""Recognise a graph that is one block of a list, compiled on its own: a link.

Which module is being compiled, and whose block it is, tells the stack of the call during which
Dynamo compiles. A part of a block, or what is left of one after a graph break, is no link.

    model.forward | block.compiled call | graph      the graph is `blocks.0`, and all of it
"""

from torch import fx, nn

from dit_cachegraph.call_stack import block_being_compiled, outermost_module


def find_link(gm: fx.GraphModule) -> nn.Module | None:
    """The block that this graph is all of; None where it is anything else."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    block, model = block_being_compiled(), outermost_module()
    if reason is None or reason.graph_break or block is None or model is None or block is model:
        return None
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return block if any(item is block for items in lists for item in items) else None
