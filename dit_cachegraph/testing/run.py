"""Call a model, and look at what came out."""

import copy
import math
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dit_cachegraph.testing.expect import expect

Inputs = Mapping[str, object]


@torch.no_grad()
def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """All that the model returns, in one flat tensor."""
    return torch.cat([tensor.flatten().float() for tensor in tensors_in(model(**inputs))])


def again(inputs: Inputs, other_step: Inputs) -> Inputs:
    """The same step once more, as a sampler has it that evaluates a step at two places: the latents
    differ in their last bit. The very same latents would be those of another guidance pass."""
    staying = {id(leaf): leaf for leaf in tree_leaves(dict(other_step))}
    # A deep copy keeps strides, as a clone of a view does not, and what stands at two places.
    repeated = copy.deepcopy(dict(inputs), dict(staying))
    moving = [t for t in tree_leaves(repeated) if isinstance(t, Tensor) and id(t) not in staying]
    latents = max((t for t in moving if t.is_floating_point()), key=Tensor.numel)
    latents.mul_(1 - torch.finfo(latents.dtype).eps)
    return repeated


def tensors_in(value: object) -> Iterable[Tensor]:
    """The tensors of an output, however they are packed."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value
    expect(isinstance(items, Iterable), f"the model returns {type(value).__name__}, and no tensor")
    assert isinstance(items, Iterable)
    return chain.from_iterable(tensors_in(item) for item in items if item is not None)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def redraw(module: nn.Module, seed: int) -> None:
    """Give every parameter a seeded value under which it matters: weights that are zero at first
    (a gate, an output projection) would hide what the blocks do."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cpu")
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        elif name.endswith("weight"):
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(0.2 * noise)
