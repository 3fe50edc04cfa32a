"""What is kept between steps: a `Branch` for each request and guidance branch, with the images that
are under way on it.

Nearly always that is one image. There are several where requests share the very same conditioning:
a negative prompt that a server encodes once, or one prompt drawn with several seeds at a time.
"""

import enum
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Decision, History, Span
from dit_cachegraph.runtime.conditioning import Content, Given, LatentsIdentity
from dit_cachegraph.runtime.sketch import Sketch
from dit_cachegraph.runtime.trajectory import Clock, Trajectory
from dit_cachegraph.runtime.weights import WeightsNote


class ControlKept(NamedTuple):
    """A control of a computed step: the objects that it was made of, and a sample of it, [B, n]."""

    given: Given
    sample: Tensor


class RegionKept(NamedTuple):
    """What computed steps leave for later ones, of one region. All tensors own their storage.

    `snapshots[i]` are those of the region's i-th effect, the newest last, and `steps` the steps
    that they are from; `probe` is what the next step is compared with; `controls` are what entered
    it from outside.
    """

    probe: Tensor | None
    steps: tuple[int, ...]
    snapshots: tuple[tuple[Tensor, ...], ...]
    controls: tuple[ControlKept, ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        yield from (tensor for stream in self.snapshots for tensor in stream)
        if self.probe is not None:
            yield self.probe
        yield from (control.sample for control in self.controls)


class Ends(NamedTuple):
    """The model's input and output at the last computed step. `moved`: how far each is from the
    computed step before it, [B, 2], until the next step has read it."""

    input: Tensor
    output: Tensor
    moved: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of all regions. `signature` is that of the trunk: another trunk, other spans or
    other predictors can't use it, nor can other weights. `ends` are the model's, where the rule
    asks for them."""

    signature: int
    spans: tuple[Span, ...]
    predictors: tuple[Predictor, ...]
    weights: WeightsNote
    regions: tuple[RegionKept | None, ...]
    ends: Ends | None = None

    def restarted(self, step: int) -> "Kept":
        """The same where the last step, which computed, turns out to be `step` of a new image."""
        regions = [
            kept
            if kept is None
            else kept._replace(steps=(step,), snapshots=tuple(s[-1:] for s in kept.snapshots))
            for kept in self.regions
        ]
        ends = None if self.ends is None else self.ends._replace(moved=None)
        return replace(self, regions=tuple(regions), ends=ends)

    def tensors(self) -> Iterator[Tensor]:
        for region in self.regions:
            if region is not None:
                yield from region.tensors()
        if self.ends is not None:
            yield from (self.ends.input, self.ends.output)


class Recorded(NamedTuple):
    """A sample of one step of a dry run, float32, on the host: the probe [B, n], None where the
    rule compares nothing; what the region added to each stream, [B, n] each; and each stream after
    it, likewise. `noise` is the timestep as a share of the noise range, where it was read."""

    probe: Tensor | None
    effects: tuple[Tensor, ...]
    outs: tuple[Tensor, ...]
    noise: float | None = None


class Passes(NamedTuple):
    """Whether passes of guidance that nothing tells apart share an image. `twice_at` is the
    timestep at which it was called twice with the same latents, or begun anew with those of the
    image before."""

    twice_at: Clock | None = None
    are_certain: bool = False


@dataclass(slots=True)
class ImageTally:
    """What the line about an image says."""

    num_hits: int = 0
    num_computed: int = 0
    num_blocks_run: int = 0
    num_blocks: int = 0
    smallest_diff: float | None = None
    threshold: float | None = None


@dataclass(eq=False, slots=True)
class Image:
    """One image under way on one branch. It changes at the end of a step, and only there.

    `companions` are the images of the other guidance branches of the same request: they were first
    called with the same latents object. `last_decisions` are those of its last step. `lost` says
    why nothing is kept any more, `has_successor` that an image began after it which most likely
    took its place. `recording` is what a dry run saw.
    """

    branch: "Branch"
    trajectory: Trajectory = field(default_factory=Trajectory)
    history: History = field(default_factory=History)
    kept: Kept | None = None
    last_decisions: tuple[Decision, ...] = ()
    lost: str | None = None
    sketch: Sketch | None = None
    latents: LatentsIdentity | None = None
    latents_versions: tuple[int, ...] | None = None
    signature: int | None = None
    passes: Passes = Passes()
    companions: list["Image"] = field(default_factory=list)
    tally: ImageTally = field(default_factory=ImageTally)
    is_complete: bool = False
    has_successor: bool = False
    recording: list[Recorded] = field(default_factory=list)
    first_call: int = 0
    last_call: int = 0

    def strip(self, why: str) -> None:
        """Free the tensors, and go on knowing which step comes next."""
        if self.kept is not None:
            self.kept = None
            self.lost = why


class Rebuilt(enum.Enum):
    """How much of its conditioning a caller makes anew from one call of an image to the next."""

    NEVER = enum.auto()
    PARTLY = enum.auto()
    WHOLLY = enum.auto()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Branch:
    """One request's guidance branch.

    `identity`, `versions` and `content` tell its conditioning: the objects, how often they were
    written to, and what they say; `storages` are its objects now, `num_uses` counts calls with
    them, `adopted_from` are the objects before them, if they were rebuilt.
    """

    label: str
    request_key: Hashable | None
    content: Content
    images: list[Image] = field(default_factory=list)
    num_uses: int = 0
    identity: tuple[Hashable, ...] = ()
    versions: tuple[int, ...] | None = None
    storages: tuple["weakref.ref[torch.UntypedStorage]", ...] = ()
    adopted_from: tuple["weakref.ref[torch.UntypedStorage]", ...] = ()
    rebuilt: Rebuilt = Rebuilt.NEVER

    @property
    def last_call(self) -> int:
        return max((image.last_call for image in self.images), default=0)
