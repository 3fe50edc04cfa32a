"""Find the trunk: the repeated blocks that carry the image to the output.

A Dynamo graph comes in, the block sequences of the trunk come out, in call order. Candidates are
calls of modules that sit in a list (`...blocks.3`, by module path); everything else is decided by
dataflow: a list counts only if each block feeds the next one, the heaviest such list is the
anchor, and a neighbouring list joins only if it hands over all that the next one carries. So
FLUX's double and single blocks are one trunk, while a refiner that makes only the text side of
it is not part of it.

    prologue | transformer_blocks.0 | ... | single_transformer_blocks.37 | epilogue
"""

from collections import defaultdict
from collections.abc import Iterable

from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.check_effects import written_by
from dit_cachegraph.graph.fx_utils import (
    is_weight,
    module_stack,
    num_elements_hint,
    shape_key,
    tensors_in,
    value_of,
)
from dit_cachegraph.plan import Block, BlockSequence


def find_blocks(gm: fx.GraphModule) -> tuple[BlockSequence, ...]:
    """The sequences of the trunk in call order.

    Raises:
        CannotCut: the graph has no list of at least two blocks of which each feeds the next.
    """
    nodes = list(gm.graph.nodes)
    _check_hooks(nodes)
    order = {node: i for i, node in enumerate(nodes)}
    candidates = _module_lists(nodes)
    chained = [s for s in candidates if _has_repeats(s) and _is_chained(s, nodes)]
    if not chained:
        raise CannotCut(_why_no_blocks(candidates))
    work = [num_elements_hint(value_of(node)) for node in nodes]
    anchor = max(chained, key=lambda s: sum(sum(work[b.first : b.last + 1]) for b in s.blocks))
    return _extend(anchor, candidates, nodes, order)


def _check_hooks(nodes: list[fx.Node]) -> None:
    """Refuse the fragments of a model whose forward methods diffusers' hooks have replaced."""
    for node in nodes:
        if any("original_forward" in path for _, path, _ in module_stack(node)):
            raise CannotCut(
                "hooks replace the forward methods of the blocks, as diffusers' own cache does: "
                "call `transformer.disable_cache()` before you compile"
            )


def _why_no_blocks(candidates: list[BlockSequence]) -> str:
    if not candidates:
        return (
            "this graph calls no module of a list (`nn.ModuleList`), so there are no repeated "
            "blocks; if the model has some, a graph break may have kept them out of this graph"
        )
    seen = ", ".join(str(s) for s in candidates[:4])
    return (
        f"no list of at least two blocks of which each feeds the next (seen: {seen}); if the "
        "model has one, a graph break may have split it: TORCH_LOGS=graph_breaks shows where"
    )


def _module_lists(nodes: list[fx.Node]) -> list[BlockSequence]:
    """Every list of which a module is called, at any depth, with the node span of each call."""
    spans: dict[tuple[str, str, str], list[int]] = {}
    classes: dict[tuple[str, str, str], str] = {}
    for i, node in enumerate(nodes):
        # Parameters have a module path too, but stand together before the first call.
        for call, path, cls in module_stack(node) if node.op != "placeholder" else ():
            container, _, index = path.rpartition(".")
            if not index.isdigit() or not container:
                continue
            key = (container, path, call)
            spans.setdefault(key, [i, i])[1] = i
            classes[key] = cls.__name__ if isinstance(cls, type) else str(cls).rpartition(".")[2]
    lists: dict[str, list[Block]] = defaultdict(list)
    for key, (first, last) in spans.items():
        container, path, _ = key
        lists[container].append(Block(path, first, last, classes[key]))
    return [
        BlockSequence(name, tuple(sorted(blocks, key=lambda b: b.first)))
        for name, blocks in lists.items()
    ]


def _has_repeats(sequence: BlockSequence) -> bool:
    """True if two blocks are of one class: an `nn.Sequential` of unlike layers is no block list."""
    return len({block.class_name for block in sequence.blocks}) < len(sequence.blocks)


def _is_chained(sequence: BlockSequence, nodes: list[fx.Node]) -> bool:
    """True if the blocks' spans are apart and each block depends on the one before it."""
    for before, after in zip(sequence.blocks, sequence.blocks[1:], strict=False):
        if before.last >= after.first or not _feeds(before, after, nodes):
            return False
    return True


def _feeds(before: Block, after: Block, nodes: list[fx.Node]) -> bool:
    reached = _reached_from(before, after.first, nodes)
    return any(
        arg in reached
        for node in nodes[after.first : after.last + 1]
        for arg in node.all_input_nodes
    )


def _reached_from(block: Block, stop: int, nodes: list[fx.Node]) -> set[fx.Node]:
    """The block's own nodes, what they write to, and what depends on them before node `stop`."""
    reached = set(nodes[block.first : block.last + 1])
    for node in nodes[block.first : block.last + 1]:
        reached.update(written_by(node))
    for node in nodes[block.last + 1 : stop]:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return reached


def _extend(
    anchor: BlockSequence,
    candidates: list[BlockSequence],
    nodes: list[fx.Node],
    order: dict[fx.Node, int],
) -> tuple[BlockSequence, ...]:
    """The anchor with the lists before and after it that carry the same streams."""
    trunk = [anchor]
    while (before := _neighbour(trunk[0], candidates, nodes, order, ahead=False)) is not None:
        trunk.insert(0, before)
    while (after := _neighbour(trunk[-1], candidates, nodes, order, ahead=True)) is not None:
        trunk.append(after)
    return tuple(trunk)


def _neighbour(
    sequence: BlockSequence,
    candidates: list[BlockSequence],
    nodes: list[fx.Node],
    order: dict[fx.Node, int],
    *,
    ahead: bool,
) -> BlockSequence | None:
    first, last = sequence.blocks[0].first, sequence.blocks[-1].last
    for other in candidates:
        if ahead:
            if other.blocks[0].first > last and _hands_over(sequence, other, nodes, order):
                return other
        elif other.blocks[-1].last < first and _hands_over(other, sequence, nodes, order):
            return other
    return None


def _hands_over(
    before: BlockSequence,
    after: BlockSequence,
    nodes: list[fx.Node],
    order: dict[fx.Node, int],
) -> bool:
    """True if all that `after` carries comes out of `before`, and nothing is added on the way.

    What a list carries into its first block: values that this block reads, no later node reads,
    and that have the layout of something the block hands on.
    """
    if not (_is_chained(before, nodes) and _is_chained(after, nodes)):
        return False
    last, head = before.blocks[-1], after.blocks[0]
    reached = _reached_from(last, head.first, nodes)
    entering = _entering(head, nodes, order)
    leaving = _leaving(last, nodes, order)
    return (
        bool(entering)
        and all(node in reached for node in entering)
        and _num_elements(entering) == _num_elements(leaving)
    )


def _entering(block: Block, nodes: list[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    handed_on = {shape_key(node) for node in _leaving(block, nodes, order)}
    inside = nodes[block.first : block.last + 1]
    found = dict.fromkeys(
        arg for node in inside for arg in node.all_input_nodes if order[arg] < block.first
    )
    return [
        arg
        for arg in found
        if not is_weight(arg)
        and max(order[user] for user in arg.users) <= block.last
        and shape_key(arg) in handed_on
    ]


def _leaving(block: Block, nodes: list[fx.Node], order: dict[fx.Node, int]) -> list[fx.Node]:
    return [
        node
        for node in nodes[block.first : block.last + 1]
        if any(order[user] > block.last for user in node.users)
        and any(True for _ in tensors_in(value_of(node)))
    ]


def _num_elements(nodes: Iterable[fx.Node]) -> int:
    return sum(num_elements_hint(value_of(node)) for node in nodes)
