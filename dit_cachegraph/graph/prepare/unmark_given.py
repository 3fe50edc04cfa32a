"""Take what the caller gives for no weight.

Dynamo marks weights by what lies on a tensor, and that lies on others too: on each `nn.Parameter`,
on what some module has as a buffer, and on what `torch._dynamo.mark_static_address` was called for.
A text's embedding that was learned, given as an argument, tells images and passes of guidance apart
like any other, and is none of the weights by which a model is known.

    forward(x, text=nn.Parameter)    L['self'].proj.weight: a weight    L['text']: conditioning

Where all parameters are arguments (a function of them), they are the weights.
"""

from torch import fx

from dit_cachegraph.graph.fx_utils import (
    WEIGHT_MARK,
    is_of_module,
    is_parameter,
    source_of,
)


def unmark_given(gm: fx.GraphModule) -> None:
    """Take the mark of a weight off arguments that are in no module, if others are in one."""
    marked = [n for n in gm.graph.find_nodes(op="placeholder") if is_parameter(n)]
    given = [n for n in marked if source_of(n) is not None and not is_of_module(n)]
    if len(given) == len(marked):
        return
    for node in given:
        told = node.meta["tensor_dict"]
        node.meta["tensor_dict"] = {k: v for k, v in told.items() if k != WEIGHT_MARK}
