"""Eager reference of settings for each block list: an oracle a list, all around one model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from oracles.dbcache import EagerOracle
from support.tiny_models import TinyModel

OracleOf = Callable[[nn.Module, TinyModel], EagerOracle]


class ListsStep(NamedTuple):
    """One call: what it gave, and whether each list was reused."""

    output: Tensor
    hits: tuple[bool, ...]


class ListsOracle:
    """`oracles[i]` makes that of the i-th list, for a model with this list alone."""

    def __init__(self, model: nn.Module, tiny: TinyModel, oracles: Sequence[OracleOf]) -> None:
        for name, make in zip(tiny.block_lists, oracles, strict=True):
            model = make(model, replace(tiny, block_lists=(name,))).model
        self.model = model
        # Each oracle copied the model before it, with the oracles that watch it.
        self.oracles = [model.get_submodule(name)[0].visit.__self__ for name in tiny.block_lists]

    @torch.no_grad()
    def step(self, **kwargs: object) -> ListsStep:
        for oracle in self.oracles:
            oracle.begin_step()
        output = self.model(**kwargs)[0]
        return ListsStep(output, tuple(oracle.end_step().hit for oracle in self.oracles))
