"""Leave out what turns gradients on and off within the model.

A graph comes here with gradients off, and what torch.compile makes of one then records nothing,
wherever the model turns them on: its results require no gradient. So these nodes change no value.
Left in, each would hold beyond its segment: blocks that were compiled for inference would run with
gradients on, and what is kept of a step would keep all that it was made of. What the call leaves
them at is done once all has run.

    _set_grad_enabled(True); y = blk0(x); _set_grad_enabled(False)    ->    y = blk0(x)
"""

import torch
from torch import fx


def drop_grad_modes(gm: fx.GraphModule) -> None:
    """Erase each node that turns gradients on or off, but for the last one, if the call leaves them
    on, and for a graph that computes some."""
    modes = [n for n in gm.graph.nodes if n.target is torch._C._set_grad_enabled]
    if not modes or any(node.target is torch.autograd.grad for node in gm.graph.nodes):
        return
    if modes[-1].args == (True,):
        gm.graph.output_node().prepend(modes.pop())
    for node in modes:
        gm.graph.erase_node(node)
    gm.recompile()
