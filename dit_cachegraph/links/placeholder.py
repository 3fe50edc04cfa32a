"""What a skipped link returns in the place of its outputs, and how it is made good.

A placeholder has the right layout, so that the next block's guards pass. Nobody may compute with
it: on a CUDA build each access to its storage raises, elsewhere it is full of NaN. So code that
begins to read what it handed on before gives an error or NaN, and no plausible picture, unless it
makes numbers of NaN itself (`nan_to_num`, a comparison). What a link sees of such a change
(`step.py`) is made good: the true values are written into it.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from dit_cachegraph.links.link import Link
from dit_cachegraph.links.watch import Spec, version_of

_MESSAGE = (
    "the code between two blocks reads what dit_cachegraph has skipped, as it did not when it was "
    'watched: call `model.compile(backend="cachedit")` on the whole model instead'
)


_CAN_FORBID_ACCESS = hasattr(torch._C, "_set_storage_data_ptr_access_error_msg")


def can_forbid_access() -> bool:
    """Whether this build of torch can make an access to data raise."""
    return _CAN_FORBID_ACCESS


def placeholder(spec: Spec) -> Tensor:
    """A tensor that nobody may compute with."""
    tensor = spec.empty()
    if can_forbid_access():
        storage = tensor.untyped_storage()._cdata
        torch._C._set_storage_data_ptr_access_error_msg(storage, _MESSAGE)
    else:
        (tensor if tensor._base is None else tensor._base).fill_(torch.nan)
    return tensor


def laid_out(tensor: Tensor, spec: Spec) -> Tensor:
    """The same values as a block lays them out, for the next one: it would be compiled anew."""
    is_alike = tensor.stride() == spec.strides and (tensor._base is None) == (spec.base is None)
    return tensor if is_alike else spec.empty().copy_(tensor)


def make_good(tensor: Tensor, true: Tensor) -> None:
    """Give a placeholder the values that it stands for."""
    if can_forbid_access():
        tensor.data = true  # The storage that raises can't be written to.
    else:
        tensor.copy_(true)


class Handed:
    """What a link has returned: each output, held weakly, and how often it was written to.
    `stand_in` are the positions of placeholders."""

    __slots__ = ("_outputs", "stand_in")

    def __init__(self, outputs: Sequence[Tensor], stand_in: frozenset[int] = frozenset()) -> None:
        self._outputs = [(weakref.ref(t), version_of(t)) for t in outputs]
        self.stand_in = stand_in

    def is_output(self, p: int, value: object) -> bool:
        return self._outputs[p][0]() is value

    def has(self, value: object) -> bool:
        return any(ref() is value for ref, _ in self._outputs)

    def is_written(self) -> bool:
        return any((t := ref()) is not None and version_of(t) != v for ref, v in self._outputs)

    def has_living_stand_in(self) -> bool:
        return any(self._outputs[p][0]() is not None for p in self.stand_in)

    def make_good(self, true: Sequence[Tensor]) -> None:
        """Of the placeholders that live on: not of those that somebody has written to, whose write
        would be lost."""
        for p in self.stand_in:
            ref, version = self._outputs[p]
            tensor = ref()
            if tensor is not None and version_of(tensor) == version:
                make_good(tensor, true[p])


class Pending:
    """One call of a link that may not have run: its arguments, without the streams, which are
    given when it runs. `entries` are the arguments of these. Offloading moves all weights of a
    block at once and counts no writes, so the address of one of them tells."""

    __slots__ = ("_address", "_args", "_entries", "_given", "_link", "_versions", "handed")

    def __init__(self, link: Link, args: Sequence[object], entries: Sequence[int]) -> None:
        self._link, self._entries = link, entries
        self._args = [None if i in entries else arg for i, arg in enumerate(args)]
        given = (self._args[i] for i in link.graph.tensors)
        self._given = [arg for arg in given if isinstance(arg, Tensor)]
        self._versions, self._address = self._written_so_far(), self._address_of_weights()
        self.handed: Handed | None = None

    def can_run(self) -> bool:
        """False once somebody has written to what it was given beside weights, or has moved these:
        its values are gone."""
        is_unwritten = self._written_so_far() == self._versions
        return is_unwritten and self._address_of_weights() == self._address

    def _address_of_weights(self) -> int:
        """Zero where there are none, and for one that holds others."""
        weight = next((self._args[i] for i in self._link.graph.weights), None)
        return weight.data_ptr() if isinstance(weight, Tensor) else 0

    def _written_so_far(self) -> list[int]:
        return [version_of(tensor) for tensor in self._given]

    def run(self, streams: Sequence[object]) -> Sequence[Tensor]:
        args = list(self._args)
        for i, stream in zip(self._entries, streams, strict=True):
            args[i] = stream
        return self._link.function(*args)
