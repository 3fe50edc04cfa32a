"""Make a link of the graph of one block: its outputs contiguous, and what is known of it.

What a link returns has the layout that a replayed value has, so that the next block's guards see
no difference; and what a skipped block must not hide is refused, as in a trunk of one graph.

    both = cat([e, h]); ...; return both[:, :5], both[:, 5:]
    ->  ...; return both[:, :5].clone(...), both[:, 5:].clone(...)
"""

import torch
from torch import fx, nn

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.cut.borders import contiguous_fake
from dit_cachegraph.graph.fx_utils import (
    is_number_of_module,
    is_weight,
    target_key,
    value_of,
)
from dit_cachegraph.graph.understand.assign_nodes import Assignment, assign_nodes
from dit_cachegraph.graph.understand.check_effects import check_effects
from dit_cachegraph.graph.understand.check_real import check_real
from dit_cachegraph.graph.understand.count_work import work_of
from dit_cachegraph.graph.understand.find_collectives import find_collectives
from dit_cachegraph.graph.understand.find_identity import adds_to
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.plan import Block, BlockSequence, LinkGraph


def link_graph(gm: fx.GraphModule, block: nn.Module) -> LinkGraph:
    """What is known of the graph of `block`, whose outputs are contiguous from now on.

    Raises:
        CannotCut: a skipped block would hide an effect, or leave other ranks waiting; or it returns
            what is no tensor, or complex numbers.
    """
    name = type(block).__name__
    assignment = _as_one_block(gm, name)
    check_effects(assignment)
    if find_collectives(assignment).names:
        raise CannotCut(
            f"a block ({name}) waits for other ranks, which decide as one where the whole model is "
            "compiled, and not where its blocks are compiled one by one: compile the whole model"
        )
    arguments = gm.graph.find_nodes(op="placeholder")
    tensors = [n for n in arguments if not is_weight(n) and isinstance(value_of(n), torch.Tensor)]
    numbers = [n for n in tensors if is_number_of_module(n)]
    index = {node: i for i, node in enumerate(arguments)}
    streams = [n for n in tensors if n not in numbers]
    sums = []
    for result in assignment.results:
        if not isinstance(result, fx.Node) or not isinstance(value_of(result), torch.Tensor):
            raise CannotCut(f"a block ({name}) returns what is no tensor")
        added = [n for n in streams if adds_to(0, StreamNodes("", (n, result)), assignment)]
        sums.append(frozenset(index[n] for n in added))
    check_real(n for n in gm.graph.output_node().all_input_nodes if n.op != "placeholder")
    kind = hash(tuple((n.op, target_key(n)) for n in gm.graph.nodes if n.op != "placeholder"))
    _make_contiguous(gm)
    return LinkGraph(
        class_name=name,
        weights=tuple(index[n] for n in arguments if is_weight(n)),
        numbers=tuple(index[n] for n in numbers),
        tensors=tuple(index[n] for n in streams),
        sums=tuple(sums),
        kind=kind,
        work=sum(work_of(node) for node in assignment.nodes),
    )


def _as_one_block(gm: fx.GraphModule, name: str) -> Assignment:
    nodes = list(gm.graph.nodes)
    first = next(i for i, node in enumerate(nodes) if node.op != "placeholder")
    block = Block(name, first, len(nodes) - 2, name)
    return assign_nodes(gm, (BlockSequence(name, (block,)),))


def _make_contiguous(gm: fx.GraphModule) -> None:
    output = next(iter(gm.graph.find_nodes(op="output")))
    for result in output.all_input_nodes:
        value = value_of(result)
        assert isinstance(value, torch.Tensor)
        fake = contiguous_fake(value)
        # Dynamo guards the stride of a batch of one too, which `contiguous` leaves as it is.
        if str(value.stride()) != str(fake.stride()):
            with gm.graph.inserting_before(output):
                copy = gm.graph.call_method(
                    "clone", (result,), {"memory_format": torch.contiguous_format}
                )
            copy.meta["example_value"] = fake
            output.replace_input_with(result, copy)
    gm.recompile()
