"""Tell the arguments of the graph apart by dataflow: latents, timestep, conditioning, weights.

latents       feed the probe stream where it enters the trunk, and are shaped like the output
timestep      reach a sine or cosine before any weight, and a weight after it
controls      shaped like the probe stream, and no part of it at its entry (ControlNet's residuals):
              they are made anew at each step, and say nothing of whose step it is
conditioning  every other tensor of the user
"""

from collections.abc import Sequence

import torch
from torch import fx

from dit_cachegraph.graph.assign_nodes import ARGUMENT, Assignment
from dit_cachegraph.graph.find_streams import StreamNodes
from dit_cachegraph.graph.fx_utils import (
    is_parameter,
    is_weight,
    num_elements_hint,
    source_name,
    target_name,
    value_of,
)
from dit_cachegraph.plan import ArgumentRoles

_PERIODIC = frozenset(("sin", "cos", "polar"))
_AS_ANOTHER = frozenset(("type_as", "to", "expand_as", "view_as", "reshape_as"))


def choose_probe(streams: Sequence[StreamNodes], assignment: Assignment) -> StreamNodes | None:
    """The image stream: it enters block 0 and reaches the output; of several such streams the one
    fed by the argument that is shaped like the output, then the largest."""
    entering = [s for s in streams if s.at[0] is not None and s.at[1] is not None]
    if not entering:
        return None
    ending = [s for s in entering if s.reaches_the_end] or entering
    users = _user_tensors(assignment)

    def rank(stream: StreamNodes) -> tuple[int, int]:
        node = stream.at[0]
        assert node is not None
        sources = _arguments_behind(node) & set(users)
        score = max((_likeness(s, assignment) for s in sources), default=-1)
        return score, num_elements_hint(value_of(node))

    return max(ending, key=rank)


def find_roles(assignment: Assignment, probe: StreamNodes) -> ArgumentRoles:
    """The role of every argument, by its index among the call's arguments."""
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    index = {node: i for i, node in enumerate(arguments)}
    users = _user_tensors(assignment)
    entry = probe.at[0]
    assert entry is not None
    behind = _arguments_behind(entry)
    feeding = [n for n in users if n in behind]
    best = max((_likeness(n, assignment) for n in feeding), default=0)
    latents = [n for n in feeding if _likeness(n, assignment) == best]
    timesteps = _timesteps([n for n in users if n not in latents])
    controls = [n for n in users if n not in behind and _sizes(n) == _sizes(entry)]
    told = {*latents, *timesteps, *controls}
    device = _device(entry)
    return ArgumentRoles(
        trunk_parameters=tuple(index[n] for n in _trunk_weights(assignment)),
        latents=tuple(index[n] for n in latents),
        timesteps=tuple(index[n] for n in timesteps if _device(n) == device),
        host_timesteps=tuple(index[n] for n in timesteps if _device(n) != device),
        conditioning=tuple(index[n] for n in users if n not in told),
        embeds_timestep=any(is_embedded_by_sinusoid(n) for n in timesteps),
        sketched=next((index[n] for n in latents if _can_be_sketched(n)), None),
    )


def _user_tensors(assignment: Assignment) -> list[fx.Node]:
    return [
        n
        for n in assignment.nodes
        if n.op == "placeholder" and not is_parameter(n) and isinstance(value_of(n), torch.Tensor)
    ]


def _trunk_weights(assignment: Assignment) -> list[fx.Node]:
    """The weights that the blocks read; all weights, where the blocks have none."""
    last = assignment.num_segments - 1
    weights = [n for n in assignment.nodes if is_weight(n)]
    in_trunk = [
        n
        for n in weights
        if any(0 < assignment.segment_of.get(user, ARGUMENT) < last for user in n.users)
    ]
    return in_trunk or weights


def _arguments_behind(node: fx.Node) -> set[fx.Node]:
    found, stack, seen = set(), [node], {node}
    while stack:
        current = stack.pop()
        if current.op == "placeholder":
            found.add(current)
        for arg in current.all_input_nodes:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return found


def _likeness(node: fx.Node, assignment: Assignment) -> int:
    """How many sizes an argument shares with the output: the latents share nearly all."""
    value = value_of(node)
    outputs = [value_of(r) for r in assignment.results if isinstance(r, fx.Node)]
    tensors = [o for o in outputs if isinstance(o, torch.Tensor)]
    if not isinstance(value, torch.Tensor) or not tensors:
        return 0
    output = tensors[0]
    if output.dim() != value.dim():
        return 0
    pairs = zip(output.shape, value.shape, strict=True)
    return sum(str(a) == str(b) for a, b in pairs)


def _timesteps(candidates: Sequence[fx.Node]) -> list[fx.Node]:
    """Named ones first: where several arguments reach a sinusoid (timestep, guidance), the order
    only breaks ties; the one that moves is read as the clock."""
    found = [n for n in candidates if is_embedded_by_sinusoid(n)]
    if not found:
        found = [n for n in candidates if _dim(n) <= 1]
    return sorted(found, key=lambda n: "time" not in source_name(n).lower())


def _sizes(node: fx.Node) -> tuple[str, ...]:
    value = value_of(node)
    return tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()


def _can_be_sketched(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _device(node: fx.Node) -> torch.device | None:
    value = value_of(node)
    return value.device if isinstance(value, torch.Tensor) else None


def _dim(node: fx.Node) -> int:
    value = value_of(node)
    return value.dim() if isinstance(value, torch.Tensor) else 99


def is_embedded_by_sinusoid(argument: fx.Node) -> bool:
    """True if a sinusoid of this argument alone (and constants) is multiplied with a weight."""
    if _dim(argument) > 2:
        return False
    pure, periodic = {argument}, set()
    stack = list(argument.users)
    seen = set(stack)
    while stack:
        node = stack.pop()
        inputs = _values_read(node)
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


def _values_read(node: fx.Node) -> list[fx.Node]:
    """The inputs whose values a node reads; of some it reads the type, device or shape alone."""
    if target_name(node) in _AS_ANOTHER and isinstance(node.args[0], fx.Node):
        return [node.args[0]]
    return node.all_input_nodes


def _is_constant(node: fx.Node) -> bool:
    """True for what depends on no argument: an `arange` and what is made of it. Buffers count."""
    if node.op == "placeholder":
        value = value_of(node)
        return isinstance(value, torch.SymInt) or (is_parameter(node) and _dim(node) <= 1)
    return all(_is_constant(arg) for arg in node.all_input_nodes)
