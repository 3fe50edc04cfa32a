"""What became of the calls of one model."""

import enum
from dataclasses import dataclass

import torch

from dit_cachegraph.plan import Uncacheable


class Outcome(enum.Enum):
    """A call: its blocks ran behind the cache; they ran, and it was watched; compiled by us and
    refused; Dynamo ran it without asking us."""

    CACHED = enum.auto()
    WATCHED = enum.auto()
    REFUSED = enum.auto()
    UNASKED = enum.auto()


class Tracing(enum.Enum):
    """How the calls of a model are traced. `AS_ASKED`: by what its user gave `torch.compile`.
    `TO_BE_FOUND`: with breaks, unless one of them turns out to keep its blocks from the cache.
    `ONE_GRAPH`: so it did; where a break is an error, Dynamo traces what depends on data (tokens
    that a mask picks), for which it breaks elsewhere."""

    AS_ASKED = enum.auto()
    TO_BE_FOUND = enum.auto()
    ONE_GRAPH = enum.auto()


@dataclass(frozen=True, slots=True)
class Unasked:
    """What was in force at a call that Dynamo ran without us: the stance of `torch.compiler`, and
    whether `torch._dynamo.config.disable` was set."""

    stance: str
    is_disabled: bool

    @classmethod
    def now(cls) -> "Unasked":
        """What is in force now."""
        return cls(torch._dynamo.eval_frame._stance.stance, bool(torch._dynamo.config.disable))


class CallLog:
    """The outcome of the last call, with its refusals, or with what was in force where Dynamo
    didn't ask. `was_disabled`: one of the calls of which nothing was seen since ran under
    `torch._dynamo.config.disable`. `broke`: the last call was refused, and wasn't one graph.
    `num_outside` are all calls that weren't cached. `tracing` is that of the next call."""

    __slots__ = (
        "_has_warned", "broke", "last", "num_outside", "num_unasked", "refusals", "tracing",
        "unasked", "was_disabled",
    )  # fmt: skip

    def __init__(self) -> None:
        self.last: Outcome | None = None
        self.refusals: tuple[Uncacheable, ...] = ()
        self.unasked: Unasked | None = None
        self.num_outside = 0
        self.num_unasked = 0
        self.was_disabled = False
        self.broke = False
        self.tracing = Tracing.AS_ASKED
        self._has_warned = False

    @property
    def is_tried_again(self) -> bool:
        """Whether the last call was refused and broke, and the next one mustn't break."""
        return self.tracing is Tracing.ONE_GRAPH and self.broke

    def note(
        self, outcome: Outcome, refusals: tuple[Uncacheable, ...], *, broke: bool = False
    ) -> None:
        """Note a call that came to us; `broke`: it was refused, and wasn't one graph."""
        self.last, self.refusals, self.unasked = outcome, refusals, None
        self.broke = broke
        self.num_unasked, self.was_disabled = 0, False
        self.num_outside += outcome is not Outcome.CACHED
        if self.tracing is Tracing.TO_BE_FOUND and outcome is not Outcome.WATCHED:
            self.tracing = Tracing.ONE_GRAPH if self.broke else Tracing.AS_ASKED

    def is_first_warning(self) -> bool:
        """Whether nobody was told before that this model isn't cached."""
        is_first, self._has_warned = not self._has_warned, True
        return is_first

    def note_unasked(self, why: Unasked) -> None:
        """Note a call that Dynamo ran without us."""
        self.last, self.unasked, self.broke = Outcome.UNASKED, why, False
        self.num_unasked += 1
        self.num_outside += 1
        self.was_disabled = self.was_disabled or why.is_disabled

    def absorb(self, other: "CallLog") -> None:
        """Take over what is known of the same model by another of its graphs. Graphs of one call
        are one call, so that the better of two outcomes is the call's."""
        own = self.num_outside if self.last is not None else other.num_outside
        self.num_outside = own if other.last is None else min(own, other.num_outside)
        if self.last is None or (other.last is Outcome.CACHED and self.last is Outcome.REFUSED):
            self.last, self.refusals, self.broke = other.last, other.refusals, other.broke
            self.unasked, self.num_unasked = other.unasked, other.num_unasked
            self.was_disabled = other.was_disabled
        if self.tracing is Tracing.AS_ASKED:
            self.tracing = other.tracing
        self._has_warned = self._has_warned or other._has_warned
