"""When to reuse: what a rule sees and says, as plain frozen data, and the base of every rule.

    spans      the blocks behind each guard, in order, and what is compared from step to step
    decide     reuse or compute, for one region of one step
    remember   what the rule itself carries from step to step

Named tuples, since several are made at each step and a frozen dataclass takes three times as long.
"""

import abc
import enum
import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from dit_cachegraph.later import Later
from dit_cachegraph.policy.diffs import BatchRule, worst_sample
from dit_cachegraph.policy.predictor import Predictor


class ProbeKind(enum.Enum):
    """What is compared, and with what."""

    RESIDUAL = "what the blocks before the region added to the stream; with the last computed step"
    HIDDEN = "the stream where the region begins; with the last computed step"
    MODULATED_INPUT = (
        "the first block's input as it is modulated by the timestep; with the last step"
    )
    LATENTS = "the model's input; with the last step"


class NoiseFilter(NamedTuple):
    """A Wiener filter for the step's noise level over the grid of the tokens; None: the grid that
    the latents show, and a spectrum that falls with the number of its axes as its power."""

    grid: tuple[int, ...] | None = None
    power: float | None = None


class Probe(NamedTuple):
    """What is compared, and how. `downsample_factor`: every k-th channel alone;
    `important_condition_threshold`: only tokens that moved by more than this, where there are any;
    `noise_filter`: after this filter, for a modulated input.
    """

    kind: ProbeKind
    downsample_factor: int = 1
    important_condition_threshold: float = 0.0
    noise_filter: NoiseFilter | None = None

    @property
    def is_of_last_step(self) -> bool:
        """True where each step is compared with the one before it, also with a reused one."""
        return self.kind in (ProbeKind.MODULATED_INPUT, ProbeKind.LATENTS)


class Span(NamedTuple):
    """Blocks `start..stop-1` behind one guard, with what is compared there: nothing in a mere
    schedule. A residual that is probed is that of the blocks from `probe_from` on."""

    start: int
    stop: int
    probe: Probe | None = None
    probe_from: int = 0


class Sums(NamedTuple):
    """Per sample `sum|v - a|` and `sum|a|` of a value `v` and its anchor `a`."""

    moved: tuple[float, ...]
    size: tuple[float, ...]


class Change(NamedTuple):
    """How far the model's input and output moved to the last computed step from the one before it,
    and how large they are there."""

    input: Sums
    output: Sums


class History(NamedTuple):
    """What happened so far in one image of one branch. `step` is the index of the current step, a
    step with any reuse is a hit, `memory` is what the rule `owner` remembers, and `largest_error`
    the largest one that the guard observed, infinite where one was no number. `num_steps` is the
    number of steps of an image, where `num_inference_steps` says it."""

    step: int = 0
    num_hits: int = 0
    num_hits_in_a_row: int = 0
    accumulated_diff: float = 0.0
    memory: object = None
    owner: type | None = None
    largest_error: float = 0.0
    num_steps: int | None = None

    def after(
        self, decisions: Sequence["Decision"], error: float | None = None, memory: object = None
    ) -> "History":
        """The history that the next step sees, with what the rule remembers of this one."""
        recorded = [max(d.diff, 0.0) for d in decisions if d.is_recorded and d.diff is not None]
        is_hit = any([decision.hit for decision in decisions])
        # `max` keeps or drops a NaN by where it stands.
        seen = math.inf if error is not None and math.isnan(error) else error or 0.0
        return History(
            step=self.step + 1,
            num_hits=self.num_hits + is_hit,
            num_hits_in_a_row=self.num_hits_in_a_row + 1 if is_hit else 0,
            accumulated_diff=self.accumulated_diff + sum(recorded) / max(len(recorded), 1),
            memory=memory,
            owner=self.owner,
            largest_error=max(self.largest_error, seen),
            num_steps=self.num_steps,
        )

    def seen_by(self, rule: "Rule", num_steps: int | None = None) -> "History":
        """The same without the memory of another rule, and with what is known of the image now."""
        if self.owner is type(rule) and self.num_steps == num_steps:
            return self
        memory = self.memory if self.owner is type(rule) else None
        return self._replace(memory=memory, owner=type(rule), num_steps=num_steps)


class Observation(NamedTuple):
    """What a step saw of one region: per sample `sum|v - a|` and `sum|a|` of the probe `v` and its
    anchor `a`. `earlier` are the decisions on the regions before it; `companions` are the other
    guidance branches of the same request. `change` is known at the step after a computed one, where
    the rule needs the output. `noise` is the timestep as a share of the noise range, where that was
    read."""

    moved: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    earlier: tuple["Decision", ...] = ()
    companions: tuple["Companion", ...] = ()
    change: Change | None = None
    noise: float | None = None


class Decision(NamedTuple):
    """Reuse or compute, and why. `is_recorded`: the diff counts towards an accumulated bound."""

    hit: bool
    reason: str
    diff: float | None = None
    is_recorded: bool = False


class Companion(NamedTuple):
    """Another guidance branch of the same request. `decision` is what it did at this very step with
    the region at hand, None where its turn is still to come; `step` is its index of this step."""

    decision: Decision | None
    step: int
    remembered: Later[object]

    @property
    def memory(self) -> object:
        """What the rule remembers of it. Right after a step whose error it goes by, this waits for
        the device."""
        return self.remembered.value()


class StepResult(NamedTuple):
    """What a step did: a decision for each region, and what was seen of the first one. Where all of
    it computed and that was measured: `error`, what a reuse would have missed as a share of the
    streams."""

    decisions: tuple[Decision, ...]
    seen: Observation
    error: float | None = None


class Need(enum.Enum):
    """What has to be read or measured before a rule can decide."""

    DIFF = "what is compared from step to step"
    """Left out where nothing is compared, or what is kept of the probe is not looked at: then
    nothing but the timestep is read from the device, and within `request(key)` nothing."""

    NOISE = "the timestep's place in the noise range"

    CLOCK = "a new image, noticed within `request(key)` as well"
    """Else the timestep is not read there; nor is it where `num_inference_steps` tells."""

    ERROR = "what a reuse would have missed, at each computed step"

    OUTPUT = "how far the model's input and output moved, at each computed step"
    """The next one reads that in the copy which it makes anyway, as `Observation.change`."""

    # Asked for several times a step; `Enum` hashes names, in Python.
    __hash__ = object.__hash__


class Rule(abc.ABC):
    """When to reuse: the base of every rule. A rule is a frozen dataclass: its fields are its
    options, checked where it is built. It holds no state: what it remembers of an image is
    `history.memory`."""

    name: ClassVar[str]
    """What `rule=` selects it by."""

    threshold_option: ClassVar[str | None] = None
    """The option that trades quality for speed, if there is one: more of it reuses more."""

    @property
    def batch_rule(self) -> BatchRule:
        """How the samples of a batch decide together: "max" by the one that moved most, "mean" by
        their average. In a batch of `requests` each decides alone, whichever this is;
        "per_sample" takes no other batch."""
        return "max"

    @property
    def needs(self) -> frozenset[Need]:
        """What has to be read or measured for it, with these options."""
        return frozenset({Need.DIFF})

    @property
    def threshold(self) -> float | None:
        """What a diff is compared with, for the report; None where nothing is compared."""
        return None

    @abc.abstractmethod
    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        """The regions, in order, for block lists of these sizes. Raises `InvalidConfig` where they
        can't be."""

    def on_trunk(self, list_sizes: Sequence[int]) -> "Rule":
        """The rule for a trunk with these block lists, where it has to know them to decide."""
        return self

    def predictor_of(self, region: int) -> Predictor | None:
        """The predictor of one region, where that is not the one that was chosen for all."""
        return None

    def forgets(self, history: History, earlier: Sequence[Decision]) -> bool:
        """Whether the next region begins anew, so that nothing of an earlier step is used for it,
        now or later."""
        return False

    def why_compute(
        self, history: History, earlier: Sequence[Decision], noise: float | None
    ) -> str | None:
        """A reason to compute the next region that needs no look at it, if there is one. `earlier`
        are the decisions on the regions before it; `noise` is the timestep as a share of the noise
        range, where that was read."""
        return None

    @abc.abstractmethod
    def decide(self, history: History, observation: Observation) -> Decision:
        """What to do with one region at this step. Asked only where something is kept of it and
        nothing says beforehand that it computes."""

    @property
    def error_batch_rule(self) -> BatchRule:
        """The same of the errors that are measured."""
        return "max"

    def sample_of(self, history: History, observation: Observation) -> int | None:
        """The sample of a batch by whose difference a region was decided, for the report; None
        where that is no single one."""
        return worst_sample(observation.moved, observation.size, self.batch_rule)

    def remember(self, history: History, result: StepResult) -> object:
        """The rule's memory after a step; `history` is the one that `decide` saw. Where an error
        was measured, this is asked when that is known: when the next step looks."""
        return None


class Schedule(Rule):
    """The base of rules that compare nothing: which steps compute hangs on their numbers alone, and
    the others skip the whole trunk."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(0, sum(list_sizes)),)
