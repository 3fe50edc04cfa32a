"""What the caller's tensors are, where no graph has them.

timesteps     of at most one dimension, or called so, and other numbers from call to call; of
              several, those that are called so, and what tells the same calls apart as they do (a
              noise level)
latents       the floats that are others at each timestep, those of the most dimensions first (a
              video, then its sound); where none is, the first of the most dimensions, in the order
              of the forward's parameters
conditioning  the rest
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.links.given import Given
from dit_cachegraph.plan import FragmentRoles

Numbers = Mapping[str, tuple[float, ...]]


def numbers_in(given: Given) -> Numbers:
    """The values of what has at most one dimension, and sums over all else. This waits for the
    device."""
    return {name: _numbers(t) for name, t in zip(given.names, given.tensors, strict=True)}


def _numbers(tensor: Tensor) -> tuple[float, ...]:
    if tensor.dim() <= 1:
        return tuple(tensor.reshape(-1).tolist())
    sums = [ops.content(part).tolist() for part in ops.plain_parts([tensor])]
    return tuple([number for pair in sums for number in pair])


def roles_of(given: Given, calls: Sequence[Numbers], parameters: Sequence[str]) -> FragmentRoles:
    """The roles of the caller's tensors, by index, from the numbers of some calls. `parameters` are
    the names of the forward's, which a caller may give in any order."""
    told = _timesteps_in(given, calls)
    timesteps = tuple(i for i, name in enumerate(given.names) if name in told)
    floats = [i for i, t in enumerate(given.tensors) if t.is_floating_point()]
    place = {name: k for k, name in enumerate(parameters)}
    floats.sort(key=lambda i: place.get(given.names[i].partition(".")[0], len(place)))
    floats.sort(key=lambda i: -given.tensors[i].dim())
    others = [i for i in floats if i not in timesteps]
    moving = [i for i in others if _goes_with(told, given.names[i], calls)]
    latents = tuple(moving or others[:1])
    taken = {*timesteps, *latents}
    rest = tuple(i for i in range(len(given.tensors)) if i not in taken)
    return FragmentRoles(timesteps, latents, rest)


def _timesteps_in(given: Given, calls: Sequence[Numbers]) -> list[str]:
    named = [name for name in given.names if "time" in name]
    small = [name for name, t in zip(given.names, given.tensors, strict=True) if t.dim() <= 1]
    changed = [n for n in dict.fromkeys([*small, *named]) if len({call[n] for call in calls}) > 1]
    told = [name for name in changed if name in named]
    if not told:
        return changed or named
    return [name for name in changed if name in told or _goes_with(told, name, calls)]


def _goes_with(told: Sequence[str], name: str, calls: Sequence[Numbers]) -> bool:
    """True for what is equal in two calls if the timesteps are, and only then. What is of one pass
    of guidance, or of one image, is not."""
    steps = {tuple([call[other] for other in told]) for call in calls}
    values = {call[name] for call in calls}
    pairs = {(call[name], *[call[other] for other in told]) for call in calls}
    return 1 < len(steps) == len(values) == len(pairs)


def batch_dim_of(stream: Sequence[int], latents: Tensor | None) -> int | None:
    """The dimension of the stream that has the latents' batch size."""
    if latents is None or not latents.dim():
        return None
    sizes = list(stream[:-1])
    return sizes.index(latents.shape[0]) if latents.shape[0] in sizes else None
