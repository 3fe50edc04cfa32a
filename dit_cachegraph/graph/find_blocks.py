"""Find the trunk: the repeated blocks that carry the image to the output.

A Dynamo graph comes in, the block sequences of the trunk come out, in call order. Candidates are
calls of modules that sit in a list (`...blocks.3`, by module path); everything else is decided by
dataflow: a list counts only if each block feeds the next one, the heaviest such list is the
anchor, and the lists that go on with what it carries join it (`join_lists`). So FLUX's double and
single blocks are one trunk, while a refiner that makes only the text side of it is not part of it.

    prologue | transformer_blocks.0 | ... | single_transformer_blocks.37 | epilogue
"""

from collections import defaultdict

from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.check_fragment import where_it_broke
from dit_cachegraph.graph.fx_utils import module_stack, num_elements_hint, value_of
from dit_cachegraph.graph.join_lists import has_repeats, is_chained, join_lists
from dit_cachegraph.plan import Block, BlockSequence


def find_blocks(gm: fx.GraphModule) -> tuple[BlockSequence, ...]:
    """The sequences of the trunk in call order.

    Raises:
        CannotCut: the graph has no list of at least two blocks of which each feeds the next.
    """
    nodes = list(gm.graph.nodes)
    _check_hooks(nodes)
    candidates = _module_lists(nodes)
    chained = [s for s in candidates if has_repeats(s) and is_chained(s, nodes)]
    if not chained:
        raise CannotCut(_why_no_blocks(candidates, where_it_broke(gm)))
    work = [num_elements_hint(value_of(node)) for node in nodes]
    anchor = max(chained, key=lambda s: sum(sum(work[b.first : b.last + 1]) for b in s.blocks))
    return join_lists(anchor, candidates, nodes)


def _check_hooks(nodes: list[fx.Node]) -> None:
    """Refuse the fragments of a model whose forward methods diffusers' hooks have replaced."""
    for node in nodes:
        if any("original_forward" in path for _, path, _ in module_stack(node)):
            raise CannotCut(
                "hooks replace the forward methods of the blocks, as diffusers' own cache does: "
                "call `transformer.disable_cache()` before you compile"
            )


def _why_no_blocks(candidates: list[BlockSequence], where: str) -> str:
    if not candidates:
        return (
            "this graph calls no module of a list (`nn.ModuleList`), so there are no repeated "
            f"blocks; if the model has some, a graph break may have kept them out of it{where}"
        )
    seen = ", ".join(str(s) for s in candidates[:4])
    return (
        f"no list of at least two blocks of which each feeds the next (seen: {seen}); if the "
        f"model has one, a graph break may have split it{where}"
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
