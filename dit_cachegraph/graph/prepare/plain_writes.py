"""Make plain what is written in place, so that blocks hand on values that nobody writes to.

A write to the whole of a value becomes the function without the underscore, and who reads the value
afterwards reads its result. Where there is none, or the result would lie otherwise in memory (a
slice, a promoted type, an operator of one's own), the write is done to a copy, and the views that
are read afterwards are taken anew, of the copy:

    y = blk0(x);  y.add_(c);  z = blk1(y)         ->  y = blk0(x);  a = y.add(c);  z = blk1(a)

    y = blk0(x);  v = y[:, n:];  w = iadd(v, c)   ->  y = blk0(x);  d = y.clone();  v = d[:, n:]
    y[:, n:] = w;  z = blk1(y)                        w = iadd(v, c);  d[:, n:] = w;  z = blk1(d)

A write that others can see stays: to an argument of the model, a weight, or a view of one. So does
what the body of a higher-order operator writes, and what fills a buffer in the call that made it,
which a copy would only make slower.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from dit_cachegraph.graph.fx_utils import (
    layout_key,
    module_stack,
    storages_of,
    tensors_in,
    value_of,
)
from dit_cachegraph.graph.node_effects import (
    changes_layout,
    has_effect,
    random_node,
    writes_of,
    written_by,
)
from dit_cachegraph.graph.prepare.plain_twin import Twin, plain_twin


def plain_writes(gm: fx.GraphModule) -> None:
    """Rewrite the writes in place for which that is sound. What the graph computes stays the
    same."""
    aliases = _Aliases(gm.graph)
    for node in list(gm.graph.nodes):
        written = [argument for writer, argument in writes_of(node) if writer is node]
        for argument in dict.fromkeys(written):
            write = _Write(node, argument, aliases.of(argument))
            if _may_change(write) and not _become_plain(write, aliases):
                _write_to_copy(write, aliases)
    gm.recompile()


class _Aliases:
    """The nodes behind each storage, as fake values tell."""

    def __init__(self, graph: fx.Graph) -> None:
        self._of_storage: dict[int, set[fx.Node]] = defaultdict(set)
        for node in graph.nodes:
            self._add(node)

    def of(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """All nodes that share a storage with `node`, in the order of the graph."""
        return tuple(sorted(set().union(*(self._of_storage[s] for s in storages_of(node)))))

    def set_value(self, node: fx.Node, value: object) -> None:
        for storage in storages_of(node):
            self._of_storage[storage].discard(node)
        node.meta["example_value"] = value
        self._add(node)

    def _add(self, node: fx.Node) -> None:
        for storage in storages_of(node):
            self._of_storage[storage].add(node)


@dataclass(frozen=True, slots=True)
class _Write:
    """`node` writes to `argument`, whose storage is shared by all of `sharing`, from the first node
    on that has it."""

    node: fx.Node
    argument: fx.Node
    sharing: tuple[fx.Node, ...]

    @property
    def root(self) -> fx.Node:
        return self.sharing[0]

    @property
    def value(self) -> FakeTensor:
        value = value_of(self.argument)
        assert isinstance(value, FakeTensor)
        return value

    def following(self) -> list[fx.Node]:
        """What shares the storage and is made of the written value: the node itself comes first."""
        return [n for n in self.sharing if n >= self.node]

    def is_read_from_here(self, node: fx.Node) -> bool:
        return any(user >= self.node for user in node.users)


def _may_change(write: _Write) -> bool:
    """False for a write that others see, that draws, or of which the fake values don't tell all."""
    values = [v for n in write.sharing for v in tensors_in(value_of(n))]
    read = [v for n in write.node.all_input_nodes for v in tensors_in(value_of(n))]
    return (
        write.root.op in ("call_function", "call_method")
        and isinstance(value_of(write.root), torch.Tensor)
        and isinstance(value_of(write.argument), torch.Tensor)
        and all(isinstance(v, FakeTensor) for v in (*values, *read))
        and len({v.dtype for v in values}) == 1
        and len(set().union(*map(storages_of, write.sharing))) == 1
        and random_node(write.node) is None
        and not changes_layout(write.node)
    )


def _become_plain(write: _Write, aliases: _Aliases) -> bool:
    """Compute the value that was written, if only that is read afterwards and it lies alike."""
    node, twin = write.node, plain_twin(write.node)
    older = [n for n in write.sharing if n < node and n is not write.argument]
    if twin is None or any(write.is_read_from_here(n) for n in older):
        return False
    value = _fake_result(write, twin)
    if not isinstance(value, FakeTensor) or layout_key(value) != layout_key(write.value):
        return False
    if write.value.storage_offset() != 0:
        return False
    node.target, node.args, node.kwargs = twin.target, twin.args, twin.kwargs
    write.argument.replace_all_uses_with(node, delete_user_cb=lambda user: user > node)
    _move(write.following(), value, aliases)
    return True


def _fake_result(write: _Write, twin: Twin) -> object:
    """The fake value that the twin makes."""
    args, kwargs = fx.map_arg((twin.args, twin.kwargs), value_of)  # type: ignore[arg-type]
    with write.value.fake_mode, torch.no_grad():
        if isinstance(twin.target, str):
            return getattr(args[0], twin.target)(*args[1:], **kwargs)
        return twin.target(*args, **kwargs)


def _write_to_copy(write: _Write, aliases: _Aliases) -> None:
    """Write to a copy of the root, of which the views that are read from here on are taken anew."""
    root, views = write.root, _views_read(write)
    root_value = value_of(root)
    assert isinstance(root_value, FakeTensor)
    with root_value.fake_mode, torch.no_grad():
        value = root_value.clone()
    assert isinstance(value, FakeTensor)
    is_alike = layout_key(value) == layout_key(root_value) and root_value.storage_offset() == 0
    if views is None or not is_alike or _fills_its_own(write):
        return
    graph, anew = root.graph, dict[fx.Node, fx.Node]()
    # The last write's own result, where it is the whole: so dataflow shows what was written.
    latest = [n for n in (root, *views) if _is_same_place(n, root)][-1]
    with graph.inserting_before(write.node):
        anew[root] = graph.call_method("clone", (latest,))
        for view in views:
            if (returned := _returned_by(view)) is not None:
                anew[view] = anew[returned]
            else:
                anew[view] = graph.node_copy(view, lambda n: anew.get(n, n))
    for old, new in anew.items():
        new.meta = {**write.node.meta, "example_value": None}
        aliases.set_value(new, value if old is root else _moved(value_of(old), value))
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user >= write.node)
    _move(write.following(), value, aliases)


def _views_read(write: _Write) -> list[fx.Node] | None:
    """The older views of the root that are read from the write on, each after what it is taken of;
    None if one of them is neither a view nor the result of a write."""
    found: list[fx.Node] = []
    for node in reversed(write.sharing[1:]):
        if node < write.node and (
            write.is_read_from_here(node) or any(user in found for user in node.users)
        ):
            found.append(node)
    sources = {write.root, *found}
    for node in found:
        is_view = not has_effect(node) and not sources.isdisjoint(node.all_input_nodes)
        if not is_view and _returned_by(node) not in sources:
            return None
    return found[::-1]


def _returned_by(node: fx.Node) -> fx.Node | None:
    """What a node writes to, if that is what it returns."""
    return next((n for n in written_by(node) if _is_same_place(n, node)), None)


def _is_same_place(one: fx.Node, other: fx.Node) -> bool:
    a, b = value_of(one), value_of(other)
    return (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and layout_key(a) == layout_key(b)
        and bool(a.storage_offset() == b.storage_offset())
        and storages_of(one) == storages_of(other)
    )


def _fills_its_own(write: _Write) -> bool:
    """True for a write, in the call of a module that made the value, with no module of a list
    called between the two."""
    own = module_stack(write.root)
    node = write.root
    while node is not write.node:
        inner = module_stack(node)[len(own) :]
        if any(path.rpartition(".")[2].isdigit() for _, path, _ in inner):
            return False
        node = node.next
    return own == module_stack(node)


def _move(nodes: list[fx.Node], value: FakeTensor, aliases: _Aliases) -> None:
    """Give the nodes the storage of a new value, with the sizes and strides that they have."""
    for node in nodes:
        aliases.set_value(node, _moved(value_of(node), value))


def _moved(old: object, value: FakeTensor) -> object:
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return value.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    with value.fake_mode, torch.no_grad():
        return tree_map_only(torch.Tensor, moved, old)
