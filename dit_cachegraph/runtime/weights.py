"""Under which weights something was kept: state of other weights is not replayed.

Two things tell that weights changed. They are other objects (an adapter was switched, a parameter
replaced), or their counters of in-place writes went on (`load_state_dict`, a training step). Where
they lie says nothing, since offloading moves weights from step to step. Numbers that modules hold,
like the scale of an adapter, are compared by value: Dynamo hands them over as tensors on the host.
So are integers that the caller gives and blocks compute with, which come as they are.

A weight of another class may hold tensors of its own, as quantised ones do: a write to one of those
leaves its counter as it was, so that theirs are read as well. Nothing holds it weakly: to move it,
torch swaps it with another (`swap_tensors`), which it does with nothing that is held weakly. So it
is known by its id, also when it is gone.

Torch counts no writes through `.data`, nor to tensors made in inference mode: these stay unseen.
With `frozen_weights` no weight is looked at, and the numbers alone are compared.
"""

import weakref
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_cachegraph.plan import ArgumentRoles
from dit_cachegraph.segments.slots import Values, gatherer

_version = attrgetter("_version")


class WeightsNote(NamedTuple):
    """Some weights, the plain ones held weakly; once one is `dead`, another may have its id.
    `num_writes`: in place, to all of them together."""

    refs: tuple["weakref.ref[Tensor]", ...]
    dead: Sequence["weakref.ref[Tensor]"]
    ids: tuple[int, ...]
    num_writes: int
    numbers: tuple[object, ...]


class Weights(NamedTuple):
    """The weights of the trunk and of what leads to it at one call, none where they are frozen.
    `num_writes`: in place, to all of them together and to what they hold; `plain` are those that
    hold no others."""

    tensors: Sequence[object]
    num_writes: int
    numbers: tuple[object, ...]
    plain: Sequence[object]

    def are_those_of(self, note: WeightsNote) -> bool:
        """True if nothing was seen to change since."""
        return (
            self.num_writes == note.num_writes
            and self.numbers == note.numbers
            and not note.dead
            and tuple(map(id, self.tensors)) == note.ids
        )

    def note(self) -> WeightsNote:
        dead: list[weakref.ref[Tensor]] = []
        refs = tuple([weakref.ref(w, dead.append) for w in self.plain if isinstance(w, Tensor)])
        ids = tuple(map(id, self.tensors))
        return WeightsNote(refs, dead, ids, self.num_writes, self.numbers)


class WeightsReader:
    """Reads them off the arguments of a call. It waits for no device."""

    def __init__(self, roles: ArgumentRoles, *, are_frozen: bool) -> None:
        self._weights = gatherer(() if are_frozen else roles.kept_under)
        self._wrapped = () if are_frozen else roles.wrapped_parameters
        self._numbers = gatherer(roles.trunk_numbers)
        wrapped = frozenset(roles.wrapped_parameters)
        self._plain = gatherer([i for i in roles.kept_under if i not in wrapped])

    def read(self, values: Values) -> Weights:
        tensors = plain = self._weights(values)
        num_writes = _num_writes(tensors)
        if self._wrapped:
            plain = self._plain(values)
            num_writes += _num_writes([p for i in self._wrapped for p in _parts_of(values[i])])
        numbers = tuple(map(_number_of, self._numbers(values)))
        return Weights(tensors, num_writes, numbers, plain)


def _number_of(value: object) -> object:
    return value.item() if isinstance(value, Tensor) else value


def _parts_of(weight: object) -> Iterator[Tensor]:
    """The tensors that a wrapper holds, and what they hold in turn."""
    if is_traceable_wrapper_subclass(weight):
        for name in weight.__tensor_flatten__()[0]:
            part = getattr(weight, name)
            if isinstance(part, Tensor):  # A DTensor has its mesh there too.
                yield part
                yield from _parts_of(part)


def _num_writes(weights: Sequence[object]) -> int:
    try:
        return sum(map(_version, weights))
    except RuntimeError:  # There are inference tensors among them.
        tensors = [w for w in weights if isinstance(w, Tensor)]
        return sum(w._version for w in tensors if not w.is_inference())
