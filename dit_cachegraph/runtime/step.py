"""One step, from start to commit: one record that each stage of the driver fills a part of.

begin     whose call it is, and by which settings it goes
look      what was read of it, which track it goes on with, what it may use
decide    for each region: reuse or compute, and why
do        for each region: what later steps may use
commit    all of it becomes the track's; before that nothing that outlives the step was changed
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from dit_cachegraph.later import Later
from dit_cachegraph.models import ModelState
from dit_cachegraph.planning.step_plan import StepPlan
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.rule import Companion, Decision, History, Observation, Rule
from dit_cachegraph.ranks.shared_call import SharedCall
from dit_cachegraph.requests.conditioning import Conditioning
from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.handoff import CallHandoff
from dit_cachegraph.requests.match import Match
from dit_cachegraph.requests.request import Request
from dit_cachegraph.requests.track import Track
from dit_cachegraph.runtime.cached_state import CachedRegion, CachedState
from dit_cachegraph.runtime.injected import Injected
from dit_cachegraph.runtime.reading import Begun, Reading
from dit_cachegraph.runtime.weights import Weights
from dit_cachegraph.segments.slots import Values


class Rerun(Protocol):
    """`SegmentRunner.run`."""

    def __call__(self, values: Values, start: int, stop: int) -> None: ...


@dataclass(eq=False, slots=True)
class RegionStep:
    """What was decided on one region, seen of it and done. `cached` is first what the step may use,
    and in the end what later steps may; `probe` what the next step is compared with; `error_sums`
    what an estimate would have missed, [B, 2]; `recorded` is for a dry run."""

    decision: Decision
    seen: Observation = Observation()
    cached: CachedRegion | None = None
    probe: Tensor | None = None
    error_sums: Tensor | None = None
    recorded: Recorded | None = None


@dataclass(eq=False, slots=True)
class Step:
    """`expected` is the track that it most likely goes on with; `partner` is known to be of the
    same request; `handoff` has the user's tensors where this fragment of the graph does not get
    them; `begun` is what is being read since before anything ran; `passes` are its track's
    companions at this step, True for those that made it; `shared` is what is being read where ranks
    share the sample, and then nothing is `begun`; `state` is what the step may use of its track,
    None with `why_nothing` to say why; `rerun` runs segments on other values, None where that takes
    more than this call: ranks, a batch of requests, blocks compiled one by one. It `began` on the
    host's clock and took `seconds`."""

    values: Values
    request: Request | None
    model: ModelState
    plan: StepPlan
    conditioning: Conditioning[Track]
    expected: Track | None
    partner: Track | None
    handoff: CallHandoff | None
    weights: Weights
    began: float

    begun: Begun = field(init=False)
    shared: SharedCall | None = None
    reading: Reading = field(init=False)
    call: Fingerprint = field(init=False)
    match: Match = field(init=False)
    passes: Sequence[tuple[Track, bool]] = ()
    history: History = field(init=False)
    state: CachedState | None = None
    why_nothing: str | None = None
    rerun: Rerun | None = None
    injected: Injected | None = None

    regions: list[RegionStep] = field(default_factory=list)
    latents: tuple[object, ...] = ()
    results: tuple[object, ...] = ()
    seconds: float = 0.0

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple([region.decision for region in self.regions])

    @property
    def is_hit(self) -> bool:
        return any(region.decision.hit for region in self.regions)

    @property
    def noise(self) -> float | None:
        """The timestep as a share of the noise range: 1 where all is noise. The first timestep of
        an image tells whether they count in thousandths."""
        first, known = self.match.step.trajectory.first, self.match.step.known
        if not self.call.clock or not first:
            return None
        share = self.call.clock[0] / (1000.0 if first[0] > 1 else 1.0)
        return 1 - share if known.direction > 0 else share

    def companions(self, region: int) -> tuple[Companion, ...]:
        """The other guidance branches of the request that are at this step, or at the one before,
        with what they decided on a region."""
        found = []
        for other, is_done in self.passes:
            decided = other.last_decisions if is_done else ()
            decision = decided[region] if region < len(decided) else None
            memory = _memory_of(other.history, self.plan.rule)
            found.append(Companion(decision, other.trajectory.num_calls - is_done, memory))
        return tuple(found)


def _memory_of(history: Later[History], rule: Rule) -> Later[object]:
    return Later(lambda: history.value().seen_by(rule).memory)
