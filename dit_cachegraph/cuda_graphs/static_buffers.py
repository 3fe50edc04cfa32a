"""Memory at fixed addresses, by which values come into a captured run and leave it.

Nothing is kept in it from one turn to the next, so all graphs share it: the n-th tensor of a kind
lies in the n-th buffer of that kind, whichever graph it belongs to. A buffer goes with the last
graph that uses it.
"""

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph.cuda_graphs.capturer import Capturer


class Buffer(NamedTuple):
    """`flat` is the memory, [n], and `shaped` a tensor that lies in it."""

    flat: Tensor
    shaped: Tensor

    def copied(self) -> Tensor:
        """What lies in it, in memory of its own, with the same strides."""
        return self.flat.clone().as_strided(self.shaped.shape, self.shaped.stride())


class StaticBuffers:
    """The buffers of one capturer."""

    def __init__(self, capturer: Capturer) -> None:
        self._capturer = capturer
        self._kept: weakref.WeakValueDictionary[object, Tensor] = weakref.WeakValueDictionary()

    def like(self, tensors: Sequence[Tensor]) -> list[Buffer]:
        """A buffer for each tensor; the same ones for the same kinds in the same order."""
        num_taken: Counter[tuple[int, torch.dtype]] = Counter()
        buffers = []
        for tensor in tensors:
            kind = (_span_of(tensor), tensor.dtype)
            place = (*kind, num_taken[kind])
            flat = self._kept.get(place)
            if flat is None:
                # Inference mode, in which a model may be called, would make tensors that can't be
                # written to outside of it.
                with torch.inference_mode(False):
                    flat = self._capturer.empty(*kind)
                self._kept[place] = flat
            num_taken[kind] += 1
            with torch.inference_mode(False):
                buffers.append(Buffer(flat, flat.as_strided(tensor.shape, tensor.stride())))
        return buffers

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in list(self._kept.values()))


def fill(buffers: Sequence[Buffer], tensors: Sequence[Tensor]) -> None:
    """Copy tensors into their buffers, gaps between their elements and all."""
    if tensors:
        torch._foreach_copy_([each.flat for each in buffers], [flat_of(t) for t in tensors])


def flat_of(tensor: Tensor) -> Tensor:
    """[n], the memory from the first element of a tensor to its last one."""
    return tensor.as_strided((_span_of(tensor),), (1,))


def _span_of(tensor: Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)
