"""Of what a node is given, that of which it reads the values."""

from torch import fx

from dit_cachegraph.graph.fx_utils import target_name

_AS_ANOTHER = frozenset(("type_as", "to", "expand_as", "view_as", "reshape_as"))
_OF_THE_SHAPE_OF = frozenset(
    ("zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty")
)


def values_read(node: fx.Node) -> list[fx.Node]:
    """The inputs whose values a node reads; of some it reads the type, device or shape alone."""
    if target_name(node) in _OF_THE_SHAPE_OF:
        return []
    if target_name(node) in _AS_ANOTHER and isinstance(node.args[0], fx.Node):
        return [node.args[0]]
    return node.all_input_nodes
