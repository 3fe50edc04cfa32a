"""Tell the arguments of the graph apart by dataflow: latents, timestep, conditioning, weights.

latents       feed a stream that reaches the end (video, sound), and are shaped like an output; of
              what feeds the probe stream, what is most like one
timestep      reach a sine or cosine before any weight, and a weight after it; also a difference of
              two of them does
controls      shaped like the probe stream, and no part of it at its entry (ControlNet's residuals):
              they are made anew at each step, and say nothing of whose step it is (`find_injected`)
numbers       what a module holds that runs in the blocks or before them (an adapter's scale), and
              integers that the caller gives and blocks compute with: they belong to the weights;
              what comes after the blocks runs at every step, and its numbers say nothing
conditioning  every other tensor of the user
"""

from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_cachegraph.graph.fx_utils import (
    is_arithmetic,
    is_integer_given,
    is_number_of_module,
    is_parameter,
    is_weight,
    num_elements_hint,
    source_name,
    storages_of,
    target_name,
    value_of,
)
from dit_cachegraph.graph.likeness import likeness, sizes_of
from dit_cachegraph.graph.node_effects import written_by
from dit_cachegraph.graph.understand.assign_nodes import ARGUMENT, Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.graph.values_read import values_read
from dit_cachegraph.plan import ArgumentRoles

_PERIODIC = frozenset(("sin", "cos", "polar"))


def choose_probe(streams: Sequence[StreamNodes], assignment: Assignment) -> StreamNodes | None:
    """The image stream: it enters block 0 and reaches the output; of several such streams the one
    fed by the argument that is shaped like the output, then the largest."""
    entering = [s for s in streams if s.moves_in(0)]
    if not entering:
        return None
    ending = [s for s in entering if s.reaches_the_end] or entering
    users, behind = set(_user_tensors(assignment)), Behind(assignment)

    def rank(stream: StreamNodes) -> tuple[int, int]:
        node = stream.at[0]
        assert node is not None
        sources = behind.of(node) & users
        score = max((likeness(s, assignment.results) for s in sources), default=-1)
        return score, num_elements_hint(value_of(node))

    return max(ending, key=rank)


def find_roles(
    assignment: Assignment, streams: Sequence[StreamNodes], probe: StreamNodes
) -> ArgumentRoles:
    """The role of every argument, by its index among the call's arguments."""
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    index = {node: i for i, node in enumerate(arguments)}
    users, behind = _user_tensors(assignment), Behind(assignment)
    entry = probe.at[0]
    assert entry is not None
    feeding = behind.of(entry)
    latents = _latents(users, feeding, streams, behind, assignment)
    timesteps = _timesteps([n for n in users if n not in latents])
    controls = [n for n in users if n not in feeding and _sizes(n) == _sizes(entry)]
    told = {*latents, *timesteps, *controls}
    numbers = [n for n in arguments if is_number_of_module(n) and n not in timesteps]
    kept_under = [n for n in arguments if _is_kept_under(n, numbers, assignment)]
    device, embeds_timestep = _device(entry), bool(_embedded(timesteps))
    weights = _trunk_weights(assignment)
    leading = [n for n in _leading_parameters(assignment) if n not in weights]
    return ArgumentRoles(
        trunk_parameters=tuple(index[n] for n in weights),
        wrapped_parameters=tuple(
            index[n] for n in (*weights, *leading) if is_traceable_wrapper_subclass(value_of(n))
        ),
        leading_parameters=tuple(index[n] for n in leading),
        trunk_numbers=tuple(index[n] for n in kept_under),
        latents=tuple(index[n] for n in latents),
        timesteps=tuple(index[n] for n in timesteps if _device(n) == device),
        host_timesteps=tuple(index[n] for n in timesteps if _device(n) != device),
        conditioning=tuple(index[n] for n in users if n not in told and n not in numbers),
        embeds_timestep=embeds_timestep,
        sampled_latents=tuple(index[n] for n in latents if _is_float(n)),
        num_latent_dims=_dim(latents[0]) if latents and embeds_timestep else None,
    )


def _latents(
    users: Sequence[fx.Node],
    feeding: set[fx.Node],
    streams: Sequence[StreamNodes],
    behind: "Behind",
    assignment: Assignment,
) -> list[fx.Node]:
    """What is denoised. Beside the image there may be sound, in a stream or a tensor of its own:
    then the model returns something of its shape."""
    ends = [s.at[0] for s in streams if s.reaches_the_end and s.at[0] is not None]
    reaching = feeding.union(*(behind.of(node) for node in ends))
    best = max((likeness(n, assignment.results) for n in users if n in feeding), default=0)
    results = [value_of(r) for r in assignment.results if isinstance(r, fx.Node)]
    shapes = [sizes_of(r) for r in results if isinstance(r, torch.Tensor) and r.dim() > 1]
    return [
        n
        for n in users
        if (n in feeding and likeness(n, assignment.results) == best)
        or (n in reaching and _is_float(n) and _sizes(n) in shapes)
    ]


def _user_tensors(assignment: Assignment) -> list[fx.Node]:
    return [
        n
        for n in assignment.nodes
        if n.op == "placeholder"
        and not is_parameter(n)
        and isinstance(value_of(n), torch.Tensor)
        and (not is_number_of_module(n) or _may_be_timestep(n, assignment))
    ]


def _may_be_timestep(number: fx.Node, assignment: Assignment) -> bool:
    """False for a number of a module that blocks read, or only what comes after them."""
    is_read_first = any(assignment.segment_of.get(user) == 0 for user in number.users)
    return is_read_first and not _is_read_in_trunk(number, assignment)


def _is_kept_under(node: fx.Node, numbers: Sequence[fx.Node], assignment: Assignment) -> bool:
    """True for one of these numbers that is read before the end, and for an integer that the caller
    gives and blocks compute with, but for a timestep."""
    if node in numbers:
        last = assignment.num_segments - 1
        return any(assignment.segment_of.get(user, last) < last for user in node.users)
    is_operand = is_integer_given(node) and _is_operand_in_trunk(node, assignment)
    return is_operand and not is_embedded_by_sinusoid(node)


def _is_operand_in_trunk(integer: fx.Node, assignment: Assignment) -> bool:
    """True if blocks multiply a tensor by it, or the like; not if they only take it for a size."""
    stack = [integer]
    while stack:
        for user in stack.pop().users:
            if isinstance(value_of(user), torch.SymInt | torch.SymFloat):
                stack.append(user)
            elif is_arithmetic(user) and _is_in_trunk(user, assignment):
                return True
    return False


def _is_read_in_trunk(node: fx.Node, assignment: Assignment) -> bool:
    return any(_is_in_trunk(user, assignment) for user in node.users)


def _is_in_trunk(node: fx.Node, assignment: Assignment) -> bool:
    return 0 < assignment.segment_of.get(node, ARGUMENT) < assignment.num_segments - 1


def _trunk_weights(assignment: Assignment) -> list[fx.Node]:
    """The weights that the blocks read; all weights, where the blocks have none."""
    weights = [n for n in assignment.nodes if is_weight(n)]
    return [n for n in weights if _is_read_in_trunk(n, assignment)] or weights


def _leading_parameters(assignment: Assignment) -> list[fx.Node]:
    """The parameters that are read before the blocks. Not buffers: a model may write in one at each
    call what it goes by in that call."""
    weights = [n for n in assignment.nodes if is_weight(n)]
    return [
        n
        for n in weights
        if isinstance(value_of(n), nn.Parameter)
        and any(assignment.segment_of.get(user) == 0 for user in n.users)
    ]


class Behind:
    """Which arguments a value depends on, also through what was written to it before the blocks."""

    def __init__(self, assignment: Assignment) -> None:
        self._writers: dict[int, list[fx.Node]] = {}
        for node in assignment.nodes[: assignment.blocks[0].first]:
            for storage in {s for written in written_by(node) for s in storages_of(written)}:
                self._writers.setdefault(storage, []).append(node)

    def of(self, node: fx.Node) -> set[fx.Node]:
        found, stack, seen = set(), [node], {node}
        while stack:
            current = stack.pop()
            if current.op == "placeholder":
                found.add(current)
            inputs = [*current.all_input_nodes, *self._written_to(current)]
            stack += [i for i in inputs if i not in seen]
            seen.update(inputs)
        return found

    def _written_to(self, node: fx.Node) -> list[fx.Node]:
        if not self._writers or is_parameter(node):
            return []
        return [writer for s in storages_of(node) for writer in self._writers.get(s, ())]


def _timesteps(candidates: Sequence[fx.Node]) -> list[fx.Node]:
    """Named ones first: where several arguments reach a sinusoid (timestep, guidance), the order
    only breaks ties; the one that moves is read as the clock."""
    found = _embedded(candidates) or [n for n in candidates if _dim(n) <= 1]
    return sorted(found, key=lambda n: "time" not in source_name(n).lower())


def _embedded(candidates: Sequence[fx.Node]) -> list[fx.Node]:
    """The arguments of which a sinusoid is embedded, alone or with other numbers (their difference,
    or the embeddings of both in one tensor)."""
    alone = [n for n in candidates if is_embedded_by_sinusoid(n)]
    numbers = [n for n in candidates if n in alone or _dim(n) <= 1]
    return [n for n in candidates if n in alone or is_embedded_by_sinusoid(n, numbers)]


def _sizes(node: fx.Node) -> tuple[str, ...]:
    return sizes_of(value_of(node))


def _is_float(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _device(node: fx.Node) -> torch.device | None:
    value = value_of(node)
    return value.device if isinstance(value, torch.Tensor) else None


def _dim(node: fx.Node) -> int:
    value = value_of(node)
    return value.dim() if isinstance(value, torch.Tensor) else 99


def is_embedded_by_sinusoid(argument: fx.Node, numbers: Sequence[fx.Node] = ()) -> bool:
    """True if a sinusoid of this argument (and constants, and other numbers) is multiplied with a
    weight. A timestep is one for a sample, a frame or a token, with any number of sizes of one."""
    if sum(size != "1" for size in _sizes(argument)) > 2:
        return False
    pure, periodic = {argument, *numbers}, set()
    stack = list(argument.users)
    seen = set(stack)
    while stack:
        node = stack.pop()
        inputs = values_read(node)
        if any(i in periodic for i in inputs) and any(is_weight(i) for i in inputs):
            return True
        if not all(i in pure or _is_constant(i) for i in inputs):
            continue
        pure.add(node)
        name = target_name(node)
        if name in _PERIODIC or any(i in periodic for i in inputs):
            periodic.add(node)
        # A node may have been met before all of its inputs were known to be pure.
        stack += [u for u in node.users if u not in pure and (u not in seen or u.op != "output")]
        seen.update(node.users)
    return False


def _is_constant(node: fx.Node) -> bool:
    """True for what depends on no argument: an `arange` and what is made of it. Buffers count."""
    if node.op == "placeholder":
        value = value_of(node)
        return isinstance(value, torch.SymInt) or (is_parameter(node) and _dim(node) <= 1)
    return all(_is_constant(arg) for arg in node.all_input_nodes)
