"""What becomes of the values of a run when it is captured.

tensor on the device    copied into a buffer at each replay; of a weight, the address has to stay
number of the host      part of what is captured: an int, or a float that Dynamo hands over as a
                        tensor without sizes
all else                can't be captured
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dit_cachegraph.cuda_graphs.static_buffers import Buffer
from dit_cachegraph.segments.slots import tensors


def in_buffers(
    values: Sequence[object], own: Sequence[Tensor], buffers: Sequence[Buffer]
) -> list[Buffer | object]:
    """The values with its buffer in the place of each tensor that has one."""
    places = {id(tensor): buffer for tensor, buffer in zip(own, buffers, strict=True)}
    return [places.get(id(value), value) for value in values]


def device_tensors(values: Sequence[object]) -> list[Tensor]:
    """Those that are no numbers."""
    return [value for value in tensors(values) if not is_number(value)]


def is_number(value: object) -> bool:
    """True for a number that Dynamo hands over as a tensor."""
    return isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"


def kind_of(value: object) -> object:
    """What a graph is captured for, but for numbers."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return type(value)
    return (value.dtype, value.device, value.shape, value.stride())


def number_of(value: object) -> object:
    """A number of the host; None for all else."""
    if isinstance(value, Tensor):
        return value.item() if is_number(value) else None
    return value


def addresses_of(weights: Sequence[object]) -> list[int]:
    return list(map(Tensor.data_ptr, weights))  # type: ignore[arg-type]


def why_not_static(value: object, device: torch.device) -> str | None:
    """Why a graph can't be given a value."""
    if not isinstance(value, Tensor):
        return None if isinstance(value, int | float) else f"a {type(value).__name__}"
    if value.device != device:
        return f"a tensor on {value.device}"
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        return f"a {type(value).__name__} that is no plain tensor"
    return None
