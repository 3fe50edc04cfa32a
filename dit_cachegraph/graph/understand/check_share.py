"""Refuse blocks that are not the trunk: a trunk does most of the work of what it is cut from.

Some other list may repeat, and feed itself, in a graph whose trunk isn't found: the MLP of the
conditioning beside blocks that are functions, the layers of a refiner. A hit on it would save next
to nothing, and replay what should follow each step. Of 101 transformers of diffusers the trunk does
57 % of the work at least, of lists that were wrongly taken for one 24 % at most.

    prologue 2 % | mlp.0 | mlp.1 | mlp.2 | epilogue 91 %    blocks: 7 % of the work, refused
"""

from collections.abc import Sequence

from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.find.check_fragment import where_it_broke
from dit_cachegraph.graph.fx_utils import call_of, num_elements_hint, value_of
from dit_cachegraph.graph.understand.assign_nodes import ARGUMENT, Assignment
from dit_cachegraph.graph.understand.count_work import work_of
from dit_cachegraph.plan import BlockSequence, Costs

MIN_SHARE = 0.5


def check_share(
    gm: fx.GraphModule, sequences: Sequence[BlockSequence], assignment: Assignment
) -> None:
    """Raise `CannotCut` if the blocks do less than half of the work of the graph; where it is not
    known, since sizes depend on data, if they hold less than half of the weights."""
    costs, num_blocks = costs_of(assignment), len(assignment.blocks)
    work, weights = costs.share_of_work(0, num_blocks), costs.share_of_weights(0, num_blocks)
    is_unknown = work is None and any(map(_depends_on_data, assignment.nodes))
    share = weights if is_unknown else work
    if share is None or share >= MIN_SHARE:
        return
    done = "" if work is None else f"do {work:.0%} of the work of this graph and "
    found = " + ".join(map(str, sequences)) + call_of(assignment.blocks[0], assignment.nodes)
    raise CannotCut(
        f"the blocks that were found ({found}) {done}hold {weights or 0:.0%} of its weights, so "
        "they are not its trunk, and a hit would save little; keep the blocks of the trunk in a "
        "list (`nn.ModuleList`) and call each as a module; if they are in one, a graph break may "
        f"have kept them out of this graph{where_it_broke(gm)}"
    )


def costs_of(assignment: Assignment) -> Costs:
    """What each segment of a graph costs. Where sizes depend on data, no work is known."""
    work, weights = [0] * assignment.num_segments, [0] * assignment.num_segments
    is_known = True
    for node in assignment.nodes:
        segment = assignment.segment_of.get(node)
        if segment is None:
            continue
        if segment != ARGUMENT:
            done = work_of(node)
            work[segment] += done
            is_known = is_known and not (done and _depends_on_data(node))
        elif isinstance(value_of(node), nn.Parameter):
            weights[_reader(node, assignment)] += num_elements_hint(value_of(node))
    return Costs(tuple(work) if is_known else (0,) * len(work), tuple(weights))


def _depends_on_data(node: fx.Node) -> bool:
    return bool(free_unbacked_symbols(value_of(node)))


def _reader(weight: fx.Node, assignment: Assignment) -> int:
    """The first block that reads it; else the prologue or the epilogue."""
    readers = {assignment.segment_of[user] for user in weight.users if user.op != "output"}
    blocks = readers.intersection(range(1, len(assignment.blocks) + 1))
    return min(blocks or readers, default=0)
