"""What one fragment of a call hands on to the next: the user's tensors, where Dynamo broke the
graph between the embedding of the timestep and the blocks.

Both are compiled while the same model is being called. What another model left, which was called
before and whose tensors live on, is none for this one.
"""

import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor, nn

from dit_cachegraph.plan import FragmentRoles


class CallHandoff(NamedTuple):
    """The user's tensors of the call under way."""

    timesteps: tuple[Tensor, ...]
    latents: tuple[Tensor, ...]
    conditioning: tuple[Tensor, ...]


class _Left(NamedTuple):
    model: type[nn.Module] | None
    timesteps: tuple["weakref.ref[Tensor]", ...]
    latents: tuple["weakref.ref[Tensor]", ...]
    conditioning: tuple["weakref.ref[Tensor]", ...]


_left: ContextVar[_Left | None] = ContextVar("dit_cachegraph_handoff", default=None)


def hand_on(model: type[nn.Module] | None, roles: FragmentRoles, args: Sequence[object]) -> None:
    """Hand on the arguments of a fragment of `model`. They are held weakly: the caller has them
    until it is given the result."""

    def refs(indices: Sequence[int]) -> tuple["weakref.ref[Tensor]", ...]:
        return tuple(weakref.ref(a) for i in indices if isinstance(a := args[i], Tensor))

    noted = (refs(roles.timesteps), refs(roles.latents), refs(roles.conditioning))
    _left.set(_Left(model, *noted))


def current_handoff(model: type[nn.Module] | None) -> CallHandoff | None:
    """What was handed on in this call of `model`; None where nothing was, or it is gone."""
    left = _left.get()
    if left is None or left.model is not model:
        return None
    found = [[ref() for ref in refs] for refs in left[1:]]
    if any(tensor is None for tensors in found for tensor in tensors):
        return None
    return CallHandoff(*(tuple(t for t in tensors if t is not None) for tensors in found))
