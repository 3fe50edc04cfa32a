"""What an image does alone, in plain eager PyTorch, whatever the rule: one object for each guidance
branch.

It is told by whom it is called, so it never asks which image or which step a call belongs to. It
shares no code with the package. `look` says what the step decides; `settle` is then told what was
decided, gives the output that goes with it, and keeps what a computed step leaves.
"""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from support.explorer.dit import ExploredDiT

TOO_CLOSE = 1e-4
Inputs = Mapping[str, Tensor]


class Rules(Protocol):
    """The settings of one step, by the field's names, as a dataclass."""

    @property
    def region(self) -> range:
        """The blocks that a hit skips."""


@dataclass(frozen=True)
class Verdict:
    """What a step decides. `is_close`: a number lies so near to its bound that rounding decides."""

    hit: bool
    reason: str
    diff: float | None = None
    is_close: bool = False


class LoneImage(abc.ABC):
    """One image under one guidance branch on one model. `passes` are all of the image there that
    are known to belong together, itself one. `error` is what reuse would have missed at the last
    step, as a share of the stream, where the rule asks for it and something was kept."""

    def __init__(self, passes: list["LoneImage"]) -> None:
        self.passes = passes
        self.passes.append(self)
        self.step = 0
        self.error: float | None = None

    @abc.abstractmethod
    def look(self, model: ExploredDiT, inputs: Inputs, rules: Rules) -> Verdict:
        """Run what the decision needs and say what the step does. Changes nothing that a step
        leaves."""

    @abc.abstractmethod
    def may_replay(self) -> bool:
        """Whether there is something of this very image that fits the step under way."""

    @abc.abstractmethod
    def give_up(self) -> None:
        """The step under way never happened."""

    @abc.abstractmethod
    def settle(self, hit: bool, is_measured: bool) -> Tensor:
        """The step ends: it was a hit, or computed, and its diff or error was measured or not.
        Returns its output."""


def run_blocks(
    model: ExploredDiT, blocks: range, stream: Tensor, temb: Tensor, inputs: Inputs
) -> Tensor:
    """The stream after some blocks."""
    for i in blocks:
        text, position_ids = inputs["encoder_hidden_states"], inputs["position_ids"]
        stream = model.blocks[i](stream, temb, text, position_ids)
    return stream


def worst_ratio(moved: Tensor, reference: Tensor) -> float:
    """Relative L1 size of what moved, of the worst sample."""
    size = reference.abs().flatten(1).sum(1)
    return float((moved.abs().flatten(1).sum(1) / size).max())


def is_close(number: float, bound: float) -> bool:
    """Whether rounding may put the number on either side of the bound."""
    return math.isclose(number, bound, rel_tol=TOO_CLOSE)
