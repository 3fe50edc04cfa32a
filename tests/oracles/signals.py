"""What the rules compare, taken by hooks from the uncompiled model at each step of an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from support.tiny_models import Inputs, TinyModel


@dataclass(frozen=True)
class EagerRun:
    """Of each step: the model's input, what block 0 modulates it to, and the output."""

    inputs: list[Tensor]
    signals: list[Tensor]
    outputs: list[Tensor]


def first_block(model: nn.Module, tiny: TinyModel) -> nn.Module:
    return model.get_submodule(tiny.block_lists[0])[0]


@torch.no_grad()
def run_eagerly(model: nn.Module, tiny: TinyModel, image: Sequence[Inputs]) -> EagerRun:
    """Uncached, with the signal from the model's own modulating norm, where it has one, else from
    the input of its first attention."""
    signals: list[Tensor] = []

    def of_norm(module: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> None:
        signals.append(output[0])

    def of_attention(module: nn.Module, args: tuple, kwargs: dict) -> None:
        signals.append(args[0] if args else kwargs["hidden_states"])

    block = first_block(model, tiny)
    modulates = type(block).__name__ == "BasicTransformerBlock" or hasattr(block, "norm1_context")
    if modulates:
        hook = block.norm1.register_forward_hook(of_norm)
    else:
        attention = block.attn1 if hasattr(block, "attn1") else block.attn
        hook = attention.register_forward_pre_hook(of_attention, with_kwargs=True)
    outputs = [model(**kwargs)[0] for kwargs in image]
    hook.remove()
    return EagerRun([kwargs["hidden_states"] for kwargs in image], signals, outputs)
