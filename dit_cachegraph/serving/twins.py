"""Pipelines that draw at once around one transformer.

What a pipeline holds beside its weights changes as it draws: its scheduler, a guider, what a VAE
for videos keeps from frame to frame; and tokenizers refuse two threads at once. Its components
alone make no second one either: they lack the numbers and flags of its configuration
(`boundary_ratio`, `is_distilled`).
"""

import copy
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from dit_cachegraph.call_stack import compiled_from
from dit_cachegraph.targets import modules_in

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Pipe = TypeVar("Pipe", bound="DiffusionPipeline")


def twin_of(pipe: Pipe) -> Pipe:
    """Another pipeline around the very same transformers, with the same weights and configuration;
    all else it has of its own, so that both may draw at once.

    Raises:
        UnknownTarget: it has no transformer.
    """
    transformers = modules_in(pipe)
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    called = [part for part in parts if _original(part) in transformers]
    weights = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    return copy.deepcopy(pipe, {id(one): one for one in (*called, *weights)})


def _original(part: nn.Module) -> nn.Module:
    compiled = compiled_from(part)
    return part if compiled is None else compiled
