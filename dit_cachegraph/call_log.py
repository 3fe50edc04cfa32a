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
    `torch._dynamo.config.disable`. `num_outside` are all calls that weren't cached."""

    __slots__ = (
        "_has_warned", "last", "num_outside", "num_unasked", "refusals", "unasked", "was_disabled"
    )  # fmt: skip

    def __init__(self) -> None:
        self.last: Outcome | None = None
        self.refusals: tuple[Uncacheable, ...] = ()
        self.unasked: Unasked | None = None
        self.num_outside = 0
        self.num_unasked = 0
        self.was_disabled = False
        self._has_warned = False

    def note(self, outcome: Outcome, refusals: tuple[Uncacheable, ...]) -> bool:
        """Note a call that came to us; true for the first one that is refused."""
        self.last, self.refusals, self.unasked = outcome, refusals, None
        self.num_unasked, self.was_disabled = 0, False
        self.num_outside += outcome is not Outcome.CACHED
        is_first = outcome is Outcome.REFUSED and not self._has_warned
        self._has_warned = self._has_warned or is_first
        return is_first

    def note_unasked(self, why: Unasked) -> None:
        """Note a call that Dynamo ran without us."""
        self.last, self.unasked = Outcome.UNASKED, why
        self.num_unasked += 1
        self.num_outside += 1
        self.was_disabled = self.was_disabled or why.is_disabled

    def absorb(self, other: "CallLog") -> None:
        """Take over what is known of the same model by another of its graphs. Graphs of one call
        are one call, so that the better of two outcomes is the call's."""
        own = self.num_outside if self.last is not None else other.num_outside
        self.num_outside = own if other.last is None else min(own, other.num_outside)
        if self.last is None or (other.last is Outcome.CACHED and self.last is Outcome.REFUSED):
            self.last, self.refusals = other.last, other.refusals
            self.unasked, self.num_unasked = other.unasked, other.num_unasked
            self.was_disabled = other.was_disabled
        self._has_warned = self._has_warned or other._has_warned
