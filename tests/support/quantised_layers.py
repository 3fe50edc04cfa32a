"""Layers in small that keep their weights as quantised layers of known libraries do."""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn


class PackedWeight(nn.Parameter):
    """A weight of bytes that says how to read it, and stays one through views, as GGUF's does."""

    bits: int

    @staticmethod
    def __new__(cls, data: Tensor, bits: int) -> "PackedWeight":
        made = torch.Tensor._make_subclass(cls, data, False)
        made.bits = bits
        return made

    def as_tensor(self) -> Tensor:
        return torch.Tensor._make_subclass(torch.Tensor, self, False)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        made = super().__torch_function__(func, types, args, kwargs or {})
        packed = next((arg for arg in args if isinstance(arg, PackedWeight)), None)
        if packed is None or not isinstance(made, Tensor) or made.dtype != torch.uint8:
            return made
        return cls(made, packed.bits)


class PackedLinear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        data = (linear.weight.detach() * 2**5).round().to(torch.int8).view(torch.uint8)
        self.weight, self.bias = PackedWeight(data, bits=5), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.as_tensor().view(torch.int8) / 2**self.weight.bits
        return nn.functional.linear(x, weight, self.bias)


class State:
    """What a weight is scaled by: no tensor, nor a module."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale


class StatefulLinear(nn.Module):
    """Its scale lies in an object beside the weight, as with bitsandbytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach() / 2, requires_grad=False)
        self.bias, self.state = linear.bias, State(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.state.scale, self.bias)


class RepointedLinear(nn.Linear):
    """Writes its weight at each call, as bitsandbytes' 8-bit layers do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.load_state_dict(linear.state_dict())
        self.kept = self.weight.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.weight.data = self.kept
        return out


@torch.library.custom_op("toy_quantised::product", mutates_args=("out",))
def product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """An operator of a library's own, that writes its product to what it is given."""
    torch.mm(x, weight.T, out=out)


@product.register_fake
def _(x: Tensor, weight: Tensor, out: Tensor) -> None:
    return None


def by_pointers(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """The same by C code that is handed pointers, of which Dynamo sees nothing. What lies there is
    returned, since Dynamo frees what is named no more."""
    made = x @ weight.T
    ctypes.memmove(out.data_ptr(), made.data_ptr(), made.nbytes)
    return made


class OpaqueLinear(nn.Module):
    """Its product is written in place to a tensor of its own, as nunchaku's layers do."""

    def __init__(self, linear: nn.Linear, multiply: Callable[[Tensor, Tensor, Tensor], object]):
        super().__init__()
        self.weight, self.bias, self.multiply = linear.weight, linear.bias, multiply

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(rows), len(self.weight), dtype=x.dtype)
        self.multiply(rows, self.weight, out)
        return out.reshape(*x.shape[:-1], -1) + self.bias


class OperatorLinear(OpaqueLinear):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, product)


class PointerLinear(OpaqueLinear):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, by_pointers)
