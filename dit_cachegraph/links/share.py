"""Which share of a model the links of a chain are: below half they are not its trunk.

Of each link the work is known, as that of any graph. Blocks of the model's lists that are no links
(Dynamo ran them eagerly) are taken to do as much for a weight as the chain does. What is in no list
doesn't repeat, and its work is not counted.

    blocks.0 ... blocks.7 | blocks.8 ... blocks.56, beyond Dynamo's limit    14 %, refused
"""

from torch import nn

from dit_cachegraph.graph.understand.check_share import MIN_SHARE
from dit_cachegraph.links.chain import INSTEAD, Chain
from dit_cachegraph.links.watch import WatchedCall, num_elements
from dit_cachegraph.module_lists import outermost_lists
from dit_cachegraph.plan import Costs


def costs_of(chain: Chain, model: nn.Module) -> Costs:
    """What each link costs, and all else of the model: of its work, that of its lists of blocks."""
    links = [link for each in chain.links if (link := each.link()) is not None]
    work = [link.graph.work for link in links]
    weights = [num_elements([each.weights]) for each in chain.links]
    unseen = max(_num_in_lists(model) - sum(weights) - chain.num_weights_beside, 0)
    beside = chain.work_beside + unseen * sum(work) // max(sum(weights), 1)
    rest = max(sum(p.numel() for p in model.parameters()) - sum(weights), 0)
    return Costs((beside, *work, 0), (rest, *weights, 0))


def is_beside(call: WatchedCall, model: nn.Module) -> bool:
    """Whether the links of a call hold less than half of the weights of the model's lists: what
    keeps them apart is not why its trunk isn't cached."""
    return num_elements(call.weights) < MIN_SHARE * _num_in_lists(model)


def _num_in_lists(model: nn.Module) -> int:
    lists = outermost_lists(model).values()
    return sum(p.numel() for p in {p for blocks in lists for p in blocks.parameters()})


def why_no_trunk(chain: Chain, costs: Costs) -> str | None:
    """What is said of a chain that does less than half of the work."""
    work = costs.share_of_work(0, len(chain.links))
    if work is None or work >= MIN_SHARE:
        return None
    weights = costs.share_of_weights(0, len(chain.links)) or 0
    first, last = chain.links[0].place, chain.links[-1].place
    return (
        f"the blocks that were joined ({first} to {last}) do {work:.0%} of the work of its blocks "
        f"and hold {weights:.0%} of its weights, so they are not its trunk: compile all of its "
        "blocks (beyond `torch._dynamo.config.recompile_limit` graphs of one code Dynamo runs "
        f"them eagerly), or {INSTEAD}"
    )
