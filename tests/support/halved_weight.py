"""A quantised weight in small: a tensor of another class, which holds one of its own."""

import torch
from torch import nn


class HalvedWeight(torch.Tensor):
    """A weight that is kept as half of itself, as quantised ones are kept as something else."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner_tensors, _meta, _size, _stride):
        return HalvedWeight(inner_tensors["inner"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return HalvedWeight(func(args[0].inner))
        whole = [2 * arg.inner if isinstance(arg, HalvedWeight) else arg for arg in args]
        return func(*whole, **(kwargs or {}))


def halve(model: nn.Module) -> None:
    """Keep a weight of each block as half of itself."""
    for block in model.blocks:
        halved = HalvedWeight(block.up.weight.detach() / 2)
        block.up.weight = nn.Parameter(halved, requires_grad=False)
