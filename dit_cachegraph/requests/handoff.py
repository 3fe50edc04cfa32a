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


_Refs = tuple["weakref.ref[Tensor]", ...]
_left: ContextVar[tuple[type[nn.Module] | None, list[_Refs]] | None] = ContextVar(
    "dit_cachegraph_handoff", default=None
)


def hand_on(model: type[nn.Module] | None, roles: FragmentRoles, args: Sequence[object]) -> None:
    """Hand on the arguments of a fragment of `model`. They are held weakly: the caller has them
    until it is given the result."""
    by_role = (roles.timesteps, roles.latents, roles.conditioning)
    given = [[a for i in indices if isinstance(a := args[i], Tensor)] for indices in by_role]
    _left.set((model, [tuple(map(weakref.ref, of_role)) for of_role in given]))


def current_handoff(model: type[nn.Module] | None) -> CallHandoff | None:
    """What was handed on in this call of `model`; None where nothing was, or it is gone."""
    left = _left.get()
    if left is None or left[0] is not model:
        return None
    found = [tuple([tensor for ref in refs if (tensor := ref()) is not None]) for refs in left[1]]
    return CallHandoff(*found) if list(map(len, found)) == list(map(len, left[1])) else None
