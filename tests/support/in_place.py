"""Forms in which a residual is written into a stream."""

from collections.abc import Callable

import torch
from torch import Tensor

Form = Callable[[Tensor, Tensor], Tensor]
FIRST = 2  # From this token on, the form that writes to a slice does.


def iadd(h: Tensor, y: Tensor) -> Tensor:
    h += y
    return h


def add_method(h: Tensor, y: Tensor) -> Tensor:
    h.add_(y)
    return h


def add_out(h: Tensor, y: Tensor) -> Tensor:
    torch.add(h, y, out=h)
    return h


def iadd_to_slice(h: Tensor, y: Tensor) -> Tensor:
    h[:, FIRST:] += y[:, FIRST:]
    return h


def addcmul(h: Tensor, y: Tensor) -> Tensor:
    h.addcmul_(y, y, value=0.5)
    return h


def add_and_clamp(h: Tensor, y: Tensor) -> Tensor:
    h = h + y
    h.clamp_(-3.0, 3.0)
    return h
