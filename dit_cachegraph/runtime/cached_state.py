"""What is held between steps. All tensors own their storage, and none is written again.

per region   probe [as the stream], what the next step is compared with
             snapshots, a tuple a stream of [as the stream], what the region added at the last
             few computed steps
             injected, [B, n] each, samples of what entered it from outside
per track    input and output of the model, where the rule asks for them
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dit_cachegraph.planning.step_plan import StepPlan
from dit_cachegraph.requests.latents import Objects
from dit_cachegraph.requests.track import HeldState
from dit_cachegraph.runtime.weights import WeightsNote


class InjectedSample(NamedTuple):
    """An injected residual of a computed step: the objects that it was made of, and a sample of it,
    [B, n]."""

    sources: Objects
    sample: Tensor


class CachedRegion(NamedTuple):
    """What computed steps leave for later ones, of one region.

    `snapshots[i]` are those of the region's i-th effect, the newest last, and `steps` the steps
    that they are from; `probe` is what the next step is compared with; `injected` are what entered
    it from outside.
    """

    probe: Tensor | None
    steps: tuple[int, ...]
    snapshots: tuple[tuple[Tensor, ...], ...]
    injected: tuple[InjectedSample, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        yield from (tensor for stream in self.snapshots for tensor in stream)
        if self.probe is not None:
            yield self.probe
        yield from (residual.sample for residual in self.injected)


class InputOutput(NamedTuple):
    """The model's input and output at the last computed step. `moved`: how far each is from the
    computed step before it, [B, 2], until the next step has read it."""

    input: Tensor
    output: Tensor
    moved: tuple[Tensor, Tensor] | None

    def has_shapes_of(self, other: "InputOutput") -> bool:
        return (self.input.shape, self.output.shape) == (other.input.shape, other.output.shape)


@dataclass(frozen=True, slots=True)
class CachedState(HeldState):
    """What is held of all regions. `signature` is that of the trunk: another trunk, a plan of other
    spans or predictors, or other weights can't use it. `ends` are the model's, where the rule asks
    for them."""

    signature: int
    plan: StepPlan
    weights: WeightsNote
    regions: tuple[CachedRegion | None, ...]
    ends: InputOutput | None = None

    def is_of(
        self, plan: StepPlan, regions: tuple[CachedRegion | None, ...], ends: InputOutput | None
    ) -> bool:
        """True if these very things are what it holds."""
        is_same = self.plan is plan and self.ends is ends
        return is_same and all(map(operator.is_, self.regions, regions))

    def tensors(self) -> Iterator[Tensor]:
        for region in self.regions:
            if region is not None:
                yield from region.tensors()
        if self.ends is not None:
            yield from (self.ends.input, self.ends.output)
