"""In which order a block returns its streams, read from its `forward`: for the report alone.

Dynamo unpacks tuples while it traces, so the graph doesn't say it. Nothing is decided by it.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence

from torch import fx

from dit_cachegraph.plan import Block


def return_order(
    nodes: Sequence[fx.Node], block: Block, names: dict[fx.Node | None, str]
) -> tuple[str, ...] | None:
    """("h", "e") or ("e", "h"), or None where the source can't tell."""
    cls = _class_of(nodes, block)
    returned = _returned_names(cls) if cls is not None else ()
    order = []
    for variable in returned:
        # Dynamo names a node after the variable: `hidden_states_47` for `hidden_states`.
        matching = {
            label
            for node, label in names.items()
            if node is not None and node.name.rstrip("0123456789").rstrip("_") == variable
        }
        if len(matching) != 1:
            return None
        order.append(matching.pop())
    return tuple(order) if sorted(order) == ["e", "h"] else None


def _class_of(nodes: Sequence[fx.Node], block: Block) -> type | None:
    for node in nodes[block.first : block.last + 1]:
        for _, cls in (node.meta.get("nn_module_stack") or {}).values():
            if isinstance(cls, type) and cls.__name__ == block.class_name:
                return cls
    return None


def _returned_names(cls: type) -> tuple[str, ...]:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(cls.__dict__["forward"])))
        tree = ast.parse(source)
    except (KeyError, OSError, SyntaxError, TypeError):
        return ()
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    for value in reversed(returned):
        if isinstance(value, ast.Tuple) and all(isinstance(e, ast.Name) for e in value.elts):
            return tuple(e.id for e in value.elts if isinstance(e, ast.Name))
    return ()
