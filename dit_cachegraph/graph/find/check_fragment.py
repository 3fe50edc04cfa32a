"""Refuse a graph that has only a side list of a model whose blocks Dynamo put elsewhere.

Where a graph breaks among the blocks, what is left in one piece may be the refiner of the text. It
repeats too, and nothing in its own graph tells that it isn't the trunk: the model does, whose call
is on Python's stack while its parts are compiled.

    refiner (a graph) | block (a graph) | block (the same graph) | ...      nothing is cached
"""

from pathlib import Path

from torch import fx, nn

from dit_cachegraph.call_stack import is_in_model_code, model_being_called
from dit_cachegraph.exc import CannotCut, NoBlocks
from dit_cachegraph.graph.fx_utils import is_weight

WEIGHTS_INSIDE = (
    "Dynamo has put the model's weights into the graph, and the cache tells models and weights "
    "apart by those that a call hands over: leave out `torch._inductor.config.freezing` and "
    "`torch._dynamo.config.install_free_tensors`; the option `frozen_weights=True` saves what "
    "looking at them costs"
)
ASKS_TO_EDIT = "Remove the `torch.compiler.disable` call"  # a hint of Dynamo's


def check_fragment(gm: fx.GraphModule) -> None:
    """Raise `NoBlocks` if the model's largest list of blocks has no weight in this graph, and
    `CannotCut` if the weights are no arguments of it."""
    if next(gm.parameters(), None) is not None:
        raise CannotCut(WEIGHTS_INSIDE)
    model = model_being_called()
    found = largest_list(model) if model is not None else None
    if found is None:
        return
    name, blocks = found
    weights = {id(p) for p in blocks.parameters()}
    if not any(id(w) in weights for w in weights_of(gm)):
        raise NoBlocks(
            f"the blocks of {type(model).__name__}, `{name}`, are not in this graph: a graph break "
            f"put them into others{where_it_broke(gm)}",
            tells_break=is_broken(gm),
        )


def is_whole(gm: fx.GraphModule) -> bool:
    """Whether the graph is all of the call: no break ended it, and none is before it."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    return reason is not None and not reason.graph_break and not is_in_model_code()


def is_broken(gm: fx.GraphModule) -> bool:
    """Whether a graph break ended this graph."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    return reason is not None and reason.graph_break


def where_it_broke(gm: fx.GraphModule) -> str:
    """` (at file:line: reason; hint)` of the graph break that ended this graph; else how to see
    it."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    if reason is None or not is_broken(gm):
        return " (`dit_cachegraph.explain` shows where)"
    frame = reason.user_stack[-1]
    lines = [line.strip() for line in reason.reason.splitlines()]
    hints = [line for line in lines if line.startswith("Hint:")]
    if is_of_a_library(frame.filename):
        hints = [hint for hint in hints if not hint.startswith(f"Hint: {ASKS_TO_EDIT}")]
    # Dynamo's name for an `if`.
    what = "a branch on the value of a tensor" if "generic_jump" in lines[0] else lines[0]
    said = "; ".join([what, *hints[:1]])
    return f" (at {frame.filename.rpartition('/')[2]}:{frame.lineno}: {said})"


def is_of_a_library(filename: str) -> bool:
    """Whether a file was installed, so that its user can't be asked to edit it."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(filename).parts)


def largest_list(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The list of repeated modules that holds most parameters."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) < len(module)
    }
    sizes = {name: sum(p.numel() for p in lists[name].parameters()) for name in lists}
    if not any(sizes.values()):
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    return largest, lists[largest]


def weights_of(gm: fx.GraphModule) -> list[object]:
    """The parameters themselves, behind the placeholders of the graph."""
    arguments = [n.meta.get("grapharg") for n in gm.graph.nodes if is_weight(n)]
    return [argument.example for argument in arguments if argument is not None]
