"""How much an argument of a graph is shaped like what the graph returns: the latents are most."""

from collections.abc import Sequence

import torch
from torch import fx

from dit_cachegraph.graph.fx_utils import value_of


def likeness(node: fx.Node, results: Sequence[object]) -> int:
    """How many sizes an argument shares with an output: the latents share nearly all."""
    own = sizes_of(value_of(node))
    outputs = [value_of(result) for result in results if isinstance(result, fx.Node)]
    shared = [
        sum(a == b for a, b in zip(sizes_of(output), own, strict=True))
        for output in outputs
        if isinstance(output, torch.Tensor) and output.dim() == len(own)
    ]
    return max(shared, default=0)


def sizes_of(value: object) -> tuple[str, ...]:
    """The sizes of a tensor, symbols by their expressions; none of anything else."""
    return tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()
