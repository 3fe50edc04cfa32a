"""Whether blocks treat each sample of a batch by itself, so that some of them can be run alone: by
where the size of the batch, a symbol, lies among the sizes of each value.

    h [B, L, D] -> view [B, L, H, d] -> transpose [B, H, L, d] -> attention     it leads everywhere
    view [B * L, D], expand [1, L, D] to [B, L, D]                              it leads here too
    h.mean(0) [L, D], h[0] [L, D], h.transpose(0, 1) [L, B, D]                  it is lost, or moves
    h.flip(0), h[order], arange(B), batch_norm                                  rows meet

What isn't known to leave each row by itself is taken to mix them: the answer is a sentence then,
and the blocks run for the whole batch.
"""

from collections.abc import Iterable

import sympy
import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import (
    line_of,
    nodes_in,
    target_name,
    tensors_in,
    value_of,
)
from dit_cachegraph.graph.node_effects import bodies_of, readings_of

_RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten", "contiguous", "squeeze"))
_SAME_FOR_ALL = frozenset(
    ("expand", "expand_as", "broadcast_to", "repeat", "zeros", "ones", "full", "empty")
    + ("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like")
)
# What mixes rows and is given no dimension to tell.
_MIXING = frozenset(
    ("batch_norm", "native_batch_norm", "masked_scatter", "masked_scatter_", "put", "put_")
    + ("histogram", "random_", "cov", "corrcoef")
)
# The latter are what export makes of the former.
_INDEX = frozenset(("getitem", "setitem", "index", "index_put", "index_put_"))
_DIMENSIONS = ("dim", "dims", "axis", "dim0", "dim1", "start_dim")
_FREE_TO_NAME_THE_FIRST = frozenset((*_RESHAPES, "size", "expand"))


def why_rows_meet(nodes: Iterable[fx.Node], batch: sympy.Symbol) -> str | None:
    """What may mix the samples of a batch of size `batch`, with its place; None if nothing does."""
    for node in nodes:
        what = _why(node, batch)
        if what is not None:
            return f"`{target_name(node)}`{line_of(node)} {what}"
    return None


def leads(tensor: torch.Tensor, batch: sympy.Symbol) -> bool:
    """True if the first dimension of a tensor is the batch alone, and no other size or stride goes
    by it."""
    sizes = (*tensor.shape[1:], *tensor.stride())
    return tensor.dim() > 0 and _expr(tensor.shape[0]) == batch and not _has(sizes, batch)


def _why(node: fx.Node, batch: sympy.Symbol) -> str | None:
    given = [t for arg in node.all_input_nodes for t in _rows_in(value_of(arg), batch)]
    made = list(tensors_in(value_of(node)))
    if node.op not in ("call_function", "call_method") or not (given or _rows_in(made, batch)):
        return None
    if not _is_of_torch(node) or any(True for _ in bodies_of(node)):
        return "is no operation of torch's own, and may mix the samples"
    if not given:
        is_known = target_name(node) in _SAME_FOR_ALL
        return None if is_known else "makes something else for each place in the batch"
    if any(not _rows_in(value, batch) for value in made):
        return "makes one value of all samples"
    if not all(_is_first(value, batch) for value in made):
        return "moves the batch from the first dimension"
    return None if _keeps_rows(node, given, made) else "works across the samples"


def _keeps_rows(node: fx.Node, given: list[torch.Tensor], made: list[torch.Tensor]) -> bool:
    """True if each row is made of the same row of what was given, as far as names and sizes say."""
    name = target_name(node)
    if name in _MIXING or _is_norm_over_all(node) or _picks_rows(node):
        return False
    if name.startswith("scaled_dot_product") and min(t.dim() for t in given) < 3:
        return False
    lengths = {_expr(tensor.shape[0]) for tensor in given}
    has_lengths = all(_expr(tensor.shape[0]) in lengths for tensor in made)
    if name == "roll" and not any(told.get("dims") for told in readings_of(node)):
        return False
    names_first = name not in _FREE_TO_NAME_THE_FIRST and 0 in _dimensions_of(node, given)
    return name in _RESHAPES or (has_lengths and not names_first)


def _dimensions_of(node: fx.Node, given: list[torch.Tensor]) -> set[int]:
    """The dimensions that a call names, by any reading of its arguments, counted from the first."""
    num_dims = max(tensor.dim() for tensor in given)
    named: set[int] = set()
    for told in readings_of(node):
        for value in (told[key] for key in _DIMENSIONS if key in told):
            numbers = value if isinstance(value, list | tuple) else [value]
            named |= {n for n in numbers if isinstance(n, int) and not isinstance(n, bool)}
    return {n + num_dims if n < 0 else n for n in named}


def _picks_rows(node: fx.Node) -> bool:
    """True where rows are picked by a tensor of their indices."""
    if target_name(node) not in _INDEX or len(node.args) < 2:
        return False
    index = node.args[1]
    first = index[0] if isinstance(index, tuple | list) and index else index
    return any(True for _ in nodes_in(first))


def _is_norm_over_all(node: fx.Node) -> bool:
    """True where each sample is measured by all of them."""
    value = value_of(node)
    if target_name(node) not in ("layer_norm", "rms_norm") or not isinstance(value, torch.Tensor):
        return False
    shapes = [told.get("normalized_shape") for told in readings_of(node)]
    known = [value_of(shape) if isinstance(shape, fx.Node) else shape for shape in shapes]
    return any(not isinstance(s, list | tuple) or len(s) >= value.dim() for s in known)


def _is_of_torch(node: fx.Node) -> bool:
    if node.op == "call_method":
        return True
    if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(node.target).split(".")[0] in ("aten", "prims")
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    module = getattr(node.target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator", "operator", "math")


def _is_first(tensor: torch.Tensor, batch: sympy.Symbol) -> bool:
    """True if the batch leads the first dimension, which may have more in it, and no other."""
    if _has(tensor.shape[1:], batch):
        return False
    return batch not in sympy.cancel(_expr(tensor.shape[0]) / batch).free_symbols


def _rows_in(value: object, batch: sympy.Symbol) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_in(value) if _has(tensor.shape, batch)]


def _has(sizes: Iterable[int | torch.SymInt], batch: sympy.Symbol) -> bool:
    return any(batch in _expr(size).free_symbols for size in sizes)


def _expr(size: int | torch.SymInt) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
