"""Which ranks share a sample: the process groups in which the blocks wait for each other.

A rank that skips a block leaves those waiting that run it. So the ranks of these groups have to
decide as one. A group is told by the argument of a collective that names it, or is a dimension of
the mesh that a `DTensor` is sharded over:

    all_to_all_single(q, [176, 176], [176, 176], '0')      group "0"
    linear(x: DTensor, w: DTensor[Shard(0)] on mesh tp)    the group of "tp"

What stands in the prologue or the epilogue runs at every step, and binds nobody.
"""

import inspect
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.fx_utils import line_of, target_name, tensors_in, value_of
from dit_cachegraph.graph.node_effects import bodies_of, readings_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment, segment_name
from dit_cachegraph.plan import RankGroups

_GROUP_ARGUMENTS = ("group_name", "process_group", "group")
_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor", "c10d", "symm_mem")
_WAIT_FOR_NOBODY = ("wait_tensor", "check_for_nan")


def find_collectives(assignment: Assignment, named: str | None = None) -> RankGroups:
    """The groups whose ranks share a sample; none where the blocks hold no collective. `named` is
    what the caller says, and then all.

    Raises:
        CannotCut: a group can't be found.
    """
    if not dist.is_available() or named is not None:
        return RankGroups() if named is None else RankGroups((named,), (named,))
    has_tokens: dict[str, bool] = {}
    last = assignment.num_segments - 1
    for node in assignment.nodes:
        segment = assignment.segment_of.get(node, 0)
        for found in _collectives_in(node) if 0 < segment < last else ():
            name = _known_name(found.group)
            if name is None:
                where = segment_name(segment, assignment.blocks)
                raise CannotCut(_why_unknown(where, found.caller, found.group))
            has_tokens[name] = has_tokens.get(name, False) or found.may_be_of_tokens
    names = tuple(name for name in has_tokens if _size_of(name) > 1)
    return RankGroups(names, tuple(name for name in names if has_tokens[name]))


def waits_for_ranks(gm: fx.GraphModule) -> bool:
    """True for a graph in which any node is a collective, or works on what is spread over ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(True for node in gm.graph.nodes for _ in _collectives_in(node))


class _Collective(NamedTuple):
    """What a node that waits for other ranks says of their group, and whether each may have a part
    of the tokens."""

    caller: fx.Node
    group: object
    may_be_of_tokens: bool = True


def _collectives_in(node: fx.Node) -> Iterator[_Collective]:
    """Each collective that a node is or runs."""
    for value in (node, *node.all_input_nodes):
        for name, may_be_of_tokens in _groups_of_mesh(value_of(value)):
            yield _Collective(node, name, may_be_of_tokens)
    told = [g for g in _told_groups(node) if _may_be_group(g)]
    if told or _is_of_torch_distributed(node):
        yield _Collective(node, told[0] if told else None)
    for body in bodies_of(node):
        for inner in body.graph.nodes:
            yield from _collectives_in(inner)


def _told_groups(node: fx.Node) -> Iterator[object]:
    """What a call says where its function takes a group. What torch has built in takes none."""
    if inspect.isfunction(node.target) or _is_operator(node):
        for reading in readings_of(node):
            yield from (reading[name] for name in _GROUP_ARGUMENTS if name in reading)


def _may_be_group(value: object) -> bool:
    """A number of that name counts something else, and so does a tensor."""
    if isinstance(value, fx.Node):
        return not isinstance(value_of(value), torch.Tensor)
    return isinstance(value, str | dist.ProcessGroup)


def _is_of_torch_distributed(node: fx.Node) -> bool:
    """True for its operators, but for those that wait for no other rank."""
    namespace, _, name = str(node.target).partition(".")
    is_own = _is_operator(node) and namespace in _NAMESPACES
    return is_own and name.removesuffix(".default") not in _WAIT_FOR_NOBODY


def _is_operator(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def _groups_of_mesh(value: object) -> Iterator[tuple[str, bool]]:
    """Those over which `DTensor`s are spread, since to work on one is to wait for the others; and
    whether they are by tokens, which is neither by the first nor by the last dimension."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return
    for tensor in tensors_in(value):
        if isinstance(tensor, module.DTensor):
            mesh, last = tensor.device_mesh, tensor.dim() - 1
            for dim, placement in enumerate(tensor.placements):
                if mesh.size(dim) > 1 and not placement.is_replicate():
                    is_inside = placement.is_shard() and placement.dim % tensor.dim() not in (
                        0,
                        last,
                    )
                    yield mesh.get_group(dim).group_name, is_inside


def _known_name(group: object) -> str | None:
    """The name of a process group; None for what is none that torch knows."""
    if isinstance(group, dist.ProcessGroup):
        return group.group_name
    if not isinstance(group, str):
        return None
    try:
        _size_of(group)
    except RuntimeError:
        return None
    return group


def _size_of(name: str) -> int:
    return dist.distributed_c10d._resolve_process_group(name).size()  # type: ignore[arg-type]


def _why_unknown(where: str, node: fx.Node, group: object) -> str:
    seen = "no name is given" if group is None else f"torch.distributed knows no {group!r}"
    return (
        f"{where} waits for other ranks (`{target_name(node)}`{line_of(node)}), and their process "
        f"group can't be found ({seen}): a rank that skips the block would leave the others "
        "waiting; name the group of all ranks that share a sample as `process_group`, in the "
        "`options` of torch.compile"
    )
