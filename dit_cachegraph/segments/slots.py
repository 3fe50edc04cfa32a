"""The values of one call, a slot each: an argument, or what a segment makes."""

from collections.abc import Callable, Sequence
from operator import itemgetter

import torch
from torch import Tensor

Values = list[object]


Gatherer = Callable[[Sequence[object]], Sequence[object]]


def gatherer(slots: Sequence[int]) -> Gatherer:
    """`values` at `slots`, as a tuple."""
    if len(slots) > 1:
        return itemgetter(*slots)
    if slots:
        only = slots[0]
        return lambda values: (values[only],)
    return lambda values: ()


def tensor_at(values: Values, slot: int) -> Tensor:
    value = values[slot]
    assert isinstance(value, Tensor), "sizes that leave a region are refused"
    return value


def joined_at(values: Values, slots: Sequence[int], dim: int) -> Tensor:
    """The tensor at the slot, or those at several put into one along `dim`."""
    found = [tensor_at(values, slot) for slot in slots]
    return found[0] if len(found) == 1 else torch.cat(found, dim)


def tensors(values: Sequence[object]) -> list[Tensor]:
    """The tensors among some values."""
    return [value for value in values if isinstance(value, Tensor)]
