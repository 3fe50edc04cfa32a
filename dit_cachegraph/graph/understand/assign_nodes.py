"""Give every node of the graph to a segment: prologue, block 0, ..., block N-1, epilogue.

All nodes inside a block's span are the block's, whatever module made them. Glue between two blocks
goes with the block after it (a ControlNet's add, a long skip's concatenation), except what depends
on no block at all (a slice of `temb` for each block): that goes into the prologue, so that blocks
that differ in nothing else stay one compiled function. It stays where it is if the glue has put it
into a context (autocast), since the prologue would compute it without. And what puts a stream back
into the shape that it had before a block (a permutation, and its inverse) goes with that block.

    ... | single_blocks.3 | add control | single_blocks.4 | ...
    ->    segment 5         segment 6     segment 6
"""

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.fx_utils import line_of, shape_key, target_name, value_of
from dit_cachegraph.graph.node_effects import is_context
from dit_cachegraph.graph.prepare.move_numbers import is_number
from dit_cachegraph.plan import Block, BlockSequence

ARGUMENT = -1
_VIEWS = frozenset(
    ("reshape", "view", "permute", "transpose", "flatten", "unflatten", "movedim", "contiguous")
)

_DEPENDS_ON_DATA = (
    "depends on data (a mask, most likely): a hit would not know it; drop the padding before the "
    "model, keep its size and mask it inside the blocks, or compile the blocks one by one "
    '(`block.compile(backend="cachedit")` for each), which are joined at run time'
)
_MARKED = (
    "the caller has marked as one that nothing may be assumed of (`mark_unbacked`), so that blocks "
    "can't be compared: mark it by `torch._dynamo.mark_dynamic` instead"
)


@dataclass(frozen=True, slots=True)
class Assignment:
    """`nodes[i]` belongs to `segment_of[nodes[i]]`; arguments to `ARGUMENT`."""

    nodes: tuple[fx.Node, ...]
    blocks: tuple[Block, ...]
    segment_of: dict[fx.Node, int]
    results: tuple[object, ...]

    @property
    def num_segments(self) -> int:
        return len(self.blocks) + 2

    def nodes_of(self, segment: int) -> list[fx.Node]:
        return [n for n in self.nodes if self.segment_of.get(n) == segment]


def assign_nodes(gm: fx.GraphModule, sequences: Sequence[BlockSequence]) -> Assignment:
    """The segment of every node.

    Raises:
        CannotCut: a value crosses a border that is neither a tensor nor an integer.
    """
    nodes = tuple(gm.graph.nodes)
    found = [block for sequence in sequences for block in sequence.blocks]
    blocks: list[Block] = []
    for called in found:
        start = blocks[-1].last + 1 if blocks else 0
        blocks.append(_with_its_way_back(_with_its_contexts(called, nodes), start, nodes))
    segment_of = _segments_of(nodes, blocks)
    for node in reversed(nodes):
        if is_number(node):  # read once, right before its reader
            segment_of[node] = min(segment_of.get(user, len(blocks) + 1) for user in node.users)
    _check_borders(nodes, segment_of, blocks)
    results = nodes[-1].args[0]
    assert isinstance(results, list | tuple), "Dynamo returns one flat tuple"
    return Assignment(nodes, tuple(blocks), segment_of, tuple(results))


def _segments_of(nodes: Sequence[fx.Node], blocks: Sequence[Block]) -> dict[fx.Node, int]:
    held = _in_contexts_of_glue(nodes, blocks)
    segment_of: dict[fx.Node, int] = {}
    spans = iter([*enumerate(blocks), (len(blocks), None)])
    position, block = next(spans)
    for i, node in enumerate(nodes):
        while block is not None and i > block.last:
            position, block = next(spans)
        if node.op == "placeholder":
            segment_of[node] = ARGUMENT
        elif node.op != "output":
            is_glue = block is not None and i < block.first
            own = 0 if is_glue and position == 0 else position + 1
            segment_of[node] = _segment_for(node, own, is_glue and node not in held, segment_of)
    return segment_of


def _segment_for(node: fx.Node, own: int, may_move: bool, segment_of: dict[fx.Node, int]) -> int:
    if node.target is operator.getitem and isinstance(
        value_of(node.all_input_nodes[0]), list | tuple
    ):
        # Unpacking goes with what it unpacks: only tensors and integers may cross a border.
        return max(segment_of[node.all_input_nodes[0]], 0)
    depends_on = max((segment_of[arg] for arg in node.all_input_nodes), default=own)
    return own if depends_on > 0 or not may_move else 0


def _in_contexts_of_glue(nodes: Sequence[fx.Node], blocks: Sequence[Block]) -> set[fx.Node]:
    """What lies, between two blocks, from the first node that enters or leaves a context to the
    last. Not every context names its beginning where it ends, so they are not told apart."""
    held: set[fx.Node] = set()
    for before, after in itertools.pairwise(blocks):
        glue = nodes[before.last + 1 : after.first]
        contexts = [i for i, node in enumerate(glue) if is_context(node)]
        if contexts:
            held.update(glue[contexts[0] : contexts[-1] + 1])
    return held


def _with_its_contexts(block: Block, nodes: Sequence[fx.Node]) -> Block:
    """The block with the context managers that it enters first or leaves last, or runs in as a
    whole: Dynamo puts those nodes (autocast's) beside the block, without its module path."""
    first, last = block.first, block.last
    while True:
        while _closes(nodes[last + 1], nodes[first : last + 1]):
            last += 1
        while first > 0 and any(_closes(u, [nodes[first - 1]]) for u in nodes[first : last + 1]):
            first -= 1
        if first == 0 or not _closes(nodes[last + 1], [nodes[first - 1]]):
            return replace(block, first=first, last=last)
        first, last = first - 1, last + 1


def _closes(node: fx.Node, opened: Sequence[fx.Node]) -> bool:
    """True for a node that ends what one of `opened` began: it reads that, and no tensor."""
    inputs = node.all_input_nodes
    return (
        bool(inputs)
        and node.op == "call_function"
        and all(i in opened and value_of(i) is None for i in inputs)
    )


def _with_its_way_back(block: Block, start: int, nodes: Sequence[fx.Node]) -> Block:
    """The block with the views after it, if these bring its stream back to the shape that it came
    in: Latte's temporal blocks work on frames of a token, between blocks on tokens of a frame. What
    is handed on as something came is back already, also where a view of it has the shape of
    something else that the block reads."""
    own = set(nodes[block.first : block.last + 1])
    exits = {n for n in own if any(user not in own for user in n.users)}
    read = {a for n in nodes[start : block.last + 1] for a in n.all_input_nodes}
    shapes = {shape_key(n) for n in read.difference(nodes[start:])}
    came = shapes.difference(map(shape_key, exits))
    own.difference_update(n for n in exits if shape_key(n) in shapes)
    last = block.last
    for i, node in enumerate(nodes[block.last + 1 :], block.last + 1):
        if not _is_view(node) or not own.issuperset(_tensors_read(node)):
            break
        own.add(node)
        last = i if shape_key(node) in came else last
    return replace(block, last=last)


def _is_view(node: fx.Node) -> bool:
    return target_name(node) in _VIEWS or isinstance(value_of(node), torch.SymInt)


def _tensors_read(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(value_of(n), torch.Tensor)]


def segment_name(segment: int, blocks: Sequence[Block]) -> str:
    """The name a report uses: `prologue`, `blocks.3`, `epilogue`."""
    if segment <= 0:
        return "prologue"
    return blocks[segment - 1].path if segment <= len(blocks) else "epilogue"


def _check_borders(
    nodes: Sequence[fx.Node], segment_of: dict[fx.Node, int], blocks: Sequence[Block]
) -> None:
    arguments = [value_of(node) for node in nodes if node.op == "placeholder"]
    given = {size for value in arguments for size in free_unbacked_symbols(value)}
    for node in nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        own = segment_of[node]
        users = [u for u in node.users if u.op != "output" and segment_of[u] != own]
        if users and not isinstance(value_of(node), torch.Tensor | torch.SymInt | int):
            raise CannotCut(
                f"`{node.name}` ({node.target}{line_of(node)}) is made in "
                f"{segment_name(own, blocks)} and used in "
                f"{segment_name(segment_of[users[0]], blocks)}, and is neither a tensor nor an "
                "integer; a context manager around several blocks does this: enter it inside the "
                "block, or around the whole model"
            )
        unbacked = free_unbacked_symbols(value_of(node)) if users else set()
        if unbacked:
            why = _MARKED if unbacked <= given else _DEPENDS_ON_DATA
            raise CannotCut(
                f"`{node.name}`{line_of(node)}, made in {segment_name(own, blocks)} and used in "
                f"{segment_name(segment_of[users[0]], blocks)}, has a size that {why}"
            )
