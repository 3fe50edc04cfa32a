"""Recognise a graph that is one block of a list, and all of it: a link.

A block has a graph of its own where it was compiled alone, or where Dynamo gave up the code that
calls it. Which module is being compiled, and whose block it is, tells the stack of the call during
which Dynamo compiles. A part of a block, or what is left of one after a graph break, is no link.

    model.forward | block.compiled call | graph      the graph is `blocks.0`, and all of it
    model.forward | hook | graph | hook              so it is here, where a hook moves its weights
"""

from collections.abc import Sequence
from traceback import FrameSummary

from torch import fx, nn

from dit_cachegraph.call_stack import module_being_compiled, outermost_module
from dit_cachegraph.graph.find.check_fragment import weights_of
from dit_cachegraph.hooks import hooks_on
from dit_cachegraph.module_lists import outermost_lists


def find_link(gm: fx.GraphModule) -> nn.Module | None:
    """The block that this graph is all of; None where it is anything else."""
    reason, model = getattr(gm, "compile_subgraph_reason", None), outermost_module()
    if reason is None or model is None:
        return None
    hooks = hooks_on(model)
    if hooks is None:
        block = None if reason.graph_break else module_being_compiled()
    elif hooks.are_around_blocks:
        block = module_being_compiled(frozenset((hooks.folder,)))
        broke = reason.user_stack if reason.graph_break else ()
        block = block if block is not None and _is_between_hooks(gm, block, broke) else None
    else:
        return None
    items = (item for blocks in outermost_lists(model).values() for item in blocks)
    return block if block is not model and any(item is block for item in items) else None


def _is_between_hooks(gm: fx.GraphModule, block: nn.Module, broke: Sequence[FrameSummary]) -> bool:
    """Whether the graph has the block in it, and didn't end inside of it, where it broke. Then its
    begin is there too, since Dynamo breaks what it inlines at the call."""
    forward, weights = type(block).forward.__code__, {id(weight) for weight in block.parameters()}
    own = (forward.co_filename, forward.co_name)
    ends_inside = any((frame.filename, frame.name) == own for frame in broke)
    return not ends_inside and any(id(weight) in weights for weight in weights_of(gm))
