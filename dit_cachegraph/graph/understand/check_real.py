"""Refuse blocks that hand on complex numbers.

What is kept of a stream is compared and put together in float32, which has no imaginary part.
Complex numbers that the blocks are only given, like those of a rotary embedding, are conditioning.
"""

from collections.abc import Iterable

import torch
from torch import fx

from dit_cachegraph.exc import CannotCut
from dit_cachegraph.graph.fx_utils import line_of, value_of


def check_real(handed_on: Iterable[fx.Node]) -> None:
    """Raises CannotCut where one of these values, which blocks make for others, is complex."""
    for node in handed_on:
        value = value_of(node)
        if isinstance(value, torch.Tensor) and value.is_complex():
            raise CannotCut(
                f"the blocks hand on complex numbers (`{node.name}`{line_of(node)}), whose "
                "imaginary part would be lost in a forecast: let them work on "
                "`torch.view_as_real` of these"
            )
