"""Find the trunk: the repeated blocks that carry the image to the output.

A Dynamo graph comes in, the block sequences of the trunk come out, in call order. Candidates are
calls of modules that sit in a list (`...blocks.3`, by module path) or a dictionary, or else code
that repeats (`find_repeats`); everything else is decided by dataflow: a list counts only if each
block feeds the next one, the heaviest such list is the anchor, and the lists that go on with what
it carries join it (`join_lists`). So FLUX's double and single blocks are one trunk, while a refiner
that makes only the text side of it is not part of it.

    prologue | transformer_blocks.0 | ... | single_transformer_blocks.37 | epilogue
"""

from collections import defaultdict

from torch import fx

from dit_cachegraph.exc import NoBlocks
from dit_cachegraph.graph.find.check_fragment import is_broken, is_whole, where_it_broke
from dit_cachegraph.graph.find.find_layers import ModuleCall, with_layers
from dit_cachegraph.graph.find.find_repeats import find_repeats
from dit_cachegraph.graph.find.handed_on import is_chained
from dit_cachegraph.graph.find.join_lists import has_repeats, join_lists
from dit_cachegraph.graph.find.leave_out_leading import leave_out_leading
from dit_cachegraph.graph.fx_utils import call_of, module_stack, num_elements_hint, value_of
from dit_cachegraph.plan import Block, BlockSequence


def find_blocks(gm: fx.GraphModule) -> tuple[BlockSequence, ...]:
    """The sequences of the trunk in call order.

    Raises:
        NoBlocks: the graph has no list of at least two blocks of which each feeds the next.
    """
    nodes = list(gm.graph.nodes)
    _check_hooks(nodes)
    candidates = _module_lists(nodes)
    work = [num_elements_hint(value_of(node)) for node in nodes if node.op != "placeholder"]
    work = [0] * (len(nodes) - len(work)) + work
    chained = [s for s in candidates if has_repeats(s) and is_chained(s, nodes)]
    chained = chained or ([] if candidates else _repeated_code(nodes, work))
    if not chained:
        where = None if is_whole(gm) else where_it_broke(gm)
        why = _why_no_blocks(candidates, nodes, where)
        raise NoBlocks(why, tells_break=is_broken(gm))
    anchor = max(chained, key=lambda s: _work_of(s, work))
    trunk = join_lists(anchor, candidates, nodes)
    return tuple(leave_out_leading(sequence, nodes) for sequence in trunk)


def _work_of(sequence: BlockSequence, work: list[int]) -> int:
    return sum(sum(work[block.first : block.last + 1]) for block in sequence.blocks)


def _repeated_code(nodes: list[fx.Node], work: list[int]) -> list[BlockSequence]:
    """Blocks that are no modules, if they are most of the graph."""
    found = find_repeats(nodes)
    if found is None or not is_chained(found, nodes) or 2 * _work_of(found, work) < sum(work):
        return []
    return [found]


def _check_hooks(nodes: list[fx.Node]) -> None:
    """Refuse the fragments of a model whose forward methods diffusers' hooks have replaced."""
    for node in nodes:
        if any("original_forward" in path for _, path, _ in module_stack(node)):
            raise NoBlocks(
                "hooks replace the forward methods of the blocks, as diffusers' own cache does: "
                "call `transformer.disable_cache()` before you compile"
            )


def _why_no_blocks(candidates: list[BlockSequence], nodes: list[fx.Node], where: str | None) -> str:
    """`where` the graph broke; None where it didn't."""
    if not candidates:
        said = (
            "this graph calls no module of a list (`nn.ModuleList`), so there are no repeated "
            "blocks"
        )
        may_be = f"if the model has some, a graph break may have kept them out of it{where}"
    else:
        seen = ", ".join(f"{s}{call_of(s.blocks[0], nodes)}" for s in candidates[:4])
        said = f"no list of at least two blocks of which each feeds the next (seen: {seen})"
        may_be = f"if the model has one, a graph break may have split it{where}"
    return said if where is None else f"{said}; {may_be}"


def _module_lists(nodes: list[fx.Node]) -> list[BlockSequence]:
    """Every list of which a module is called, at any depth, with the node span of each call; lists
    of layers in the place of those of their parts."""
    calls = [
        ModuleCall(
            i, key, path, cls.__name__ if isinstance(cls, type) else str(cls).rpartition(".")[2]
        )
        for i, node in enumerate(nodes)
        # Parameters have a module path too, but stand together before the first call.
        if node.op != "placeholder"
        for key, path, cls in module_stack(node)
    ]
    return with_layers(_lists_of_calls(calls), calls, nodes)


def _class_name(cls: object) -> str:
    return cls.__name__ if isinstance(cls, type) else str(cls).rpartition(".")[2]


def _lists_of_calls(calls: list[ModuleCall]) -> list[BlockSequence]:
    called = {call.path for call in calls}
    lists: dict[tuple[str, str], dict[tuple[str, str], Block]] = defaultdict(dict)
    for i, key, path, cls in calls:
        container, _, index = path.rpartition(".")
        if not container or not (index.isdigit() or container not in called):
            continue
        # A dictionary (`nn.ModuleDict`) may hold one thing of many kinds: each kind is a list.
        blocks = lists[container, "" if index.isdigit() else cls]
        first = blocks[path, key].first if (path, key) in blocks else i
        blocks[path, key] = Block(path, first, i, cls)
    return [
        BlockSequence(name, tuple(sorted(blocks.values(), key=lambda b: b.first)))
        for (name, kind), blocks in lists.items()
        if not kind or len(blocks) > 1
    ]
