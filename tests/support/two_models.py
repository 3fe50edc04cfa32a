"""Stands for a pipeline of Wan 2.2: nothing but its components is asked for."""

from torch import nn


class TwoModels:
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        self.components = {"transformer": first, "transformer_2": second}
