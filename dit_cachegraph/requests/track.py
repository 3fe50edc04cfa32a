"""A track: one image under way, on one pass of guidance. Nearly always a request has one under each
conditioning. There are several where requests share the very same conditioning: a negative prompt
that a server encodes once, or one prompt drawn with several seeds at a time.

    request        pass: cond     pass: uncond
    image 1        track a        track b         a.passes is b.passes == [a, b]
    image 2        track c        track d         of other latents, under the same conditioning
"""

import abc
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from dit_cachegraph.later import Later
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.rule import Decision, History
from dit_cachegraph.requests.conditioning import Conditioning
from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.schedule import Clock, Trajectory
from dit_cachegraph.tally import Tally

log = logging.getLogger("dit_cachegraph")


class HeldState(abc.ABC):
    """What is held for later steps. Whose it is, is all that is asked of it here."""

    @abc.abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """All tensors that it holds."""


@dataclass(eq=False, slots=True)
class Track:
    """It changes at the end of a step, and only there.

    `passes` are the tracks of all passes of its request, itself among them: they were first called
    with one latents object. `history` may wait for the error of the last step. `last_call` is what
    its last call showed of itself, `last_decisions` what it decided. `repeated_at` is the timestep
    at which it was called twice with the same latents, `is_shared` says that this came twice:
    passes that nothing tells apart. `is_unsure` says that one of its calls may have been of another
    image than those before, so that its companions may be that one's. `lost` says why nothing is
    held any more; `recording` is what a dry run saw, `agreed` a digest of all that ranks which
    share the sample saw and decided. Calls of a model are numbered: `first_number`, `last_number`;
    `last_seconds` is when its request was called last, on a clock that only counts on.
    """

    conditioning: Conditioning["Track"]
    trajectory: Trajectory = field(default_factory=Trajectory)
    history: Later[History] = field(default_factory=lambda: Later.known(History()))
    state: HeldState | None = None
    last_decisions: tuple[Decision, ...] = ()
    lost: str | None = None
    last_call: Fingerprint | None = None
    repeated_at: Clock | None = None
    is_shared: bool = False
    is_unsure: bool = False
    passes: list["Track"] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    is_complete: bool = False
    is_removed: bool = False
    recording: list[Recorded] = field(default_factory=list)
    agreed: int = 0
    first_number: int = 0
    last_number: int = 0
    last_seconds: float = 0.0

    @property
    def label(self) -> str:
        return self.conditioning.label

    @property
    def companions(self) -> list["Track"]:
        """The tracks of the other passes of its request."""
        return [other for other in self.passes if other is not self]

    def companions_at(self, call: Fingerprint) -> list[tuple["Track", bool]]:
        """The companions that made the step of this call already, with True, or that are at the one
        before, with False. Told by the number of steps where a call doesn't show its step."""
        last, found = self.last_call, []
        for other in self.companions:
            if call.clock is None or call.sample is None:
                ahead = other.trajectory.num_calls - self.trajectory.num_calls
                is_done, is_level = ahead == 1, ahead == 0
            else:
                is_done = call.is_at_the_step_of(other.last_call)
                is_level = last is not None and last.is_at_the_step_of(other.last_call)
            if is_done or is_level:
                found.append((other, is_done))
        return found

    def log_image(self) -> None:
        """At the last step of an image where that is known, else when its state goes, or the next
        image begins."""
        tally, self.tally = self.tally, Tally()
        if tally.num_blocks:
            log.info("%s", tally.line(self.label))
