"""Whose step it is, and what it may use: everything before the first decision.

begin             a copy of timestep and latents sample, before anything runs
expected track    what is held of it, if this step can use that
reading           these and the diff against it, in one copy
match             the track that the call goes on with
not the expected  what is held of that one, and a second copy if there is something to compare

Where ranks share the sample: what all of them show first, then the match, and what is held of it.
"""

from collections.abc import Sequence

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.policy.rule import History, Need
from dit_cachegraph.ranks.shared_call import SharedCall
from dit_cachegraph.requests.fingerprint import Fingerprint
from dit_cachegraph.requests.latents import objects_of
from dit_cachegraph.requests.match import Match, find_track
from dit_cachegraph.requests.schedule import Known, begin
from dit_cachegraph.requests.track import Track
from dit_cachegraph.runtime.agree import standing_of
from dit_cachegraph.runtime.cached_state import CachedState
from dit_cachegraph.runtime.injected import injected_now
from dit_cachegraph.runtime.reading import Asked, Begun, Probed, Reading, StepReader
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.segments.slots import gatherer, tensors


class Looker:
    """Looks at the calls of one trunk."""

    def __init__(self, compiled: CompiledTrunk, reader: StepReader) -> None:
        self._reader = reader
        self._signature = compiled.trunk.signature
        self._batch_dim = compiled.trunk.batch_dim
        self._latents = gatherer(compiled.roles.latents)

    def latents_of(self, step: Step) -> Sequence[object]:
        """What the user gave as latents."""
        return self._latents(step.values) if step.handoff is None else step.handoff.latents

    def begin(self, step: Step) -> None:
        """Begin to read what the call itself shows, before anything of it is launched."""
        if self._reader.ranks is not None:
            tracks, latents = step.conditioning.tracks, objects_of(self.latents_of(step))
            usable = [self._usable(track, step)[1] for track in tracks]
            standing = standing_of(step, latents, usable)
            step.shared = self._reader.begin_shared(step.values, step.handoff, standing)
            return
        goes_without = step.request is not None and step.plan.is_counted
        is_read = not (goes_without and step.plan.settings.common.enabled)
        step.begun = self._reader.begin(step.values, step.handoff, needs_device=is_read)

    def look(self, step: Step, probed: Probed | None) -> None:
        """Fill in what was read of the step, its track, and what it may use."""
        if step.shared is None:
            state, why_nothing = self._look_alone(step, probed)
        else:
            state, why_nothing = self._look_with_others(step, step.shared, probed)
        if state is not None:
            assert step.injected is not None
            why_nothing = step.match.step.doubt
            why_nothing = why_nothing or step.injected.why_of_no_use(state, step.reading.injected)
        step.state, step.why_nothing = None if why_nothing else state, why_nothing

    def _look_alone(
        self, step: Step, probed: Probed | None
    ) -> tuple[CachedState | None, str | None]:
        """Compare with what is held of the expected track, and if it isn't its turn once more."""
        state, why_nothing = self._usable(step.expected, step)
        regions = step.plan.regions
        step.injected = injected_now(step.values, regions, state, self._batch_dim)
        self.identify(step, self._reading(step, step.begun, probed, state))
        if step.match.track is not step.expected:
            state, why_nothing = self._usable(step.match.track, step)
            if state is not None:
                more = self._reading(step, Begun(ops.HostCopy(())), probed, state)
                known = step.reading
                step.reading = more._replace(clock=known.clock, sample=known.sample)
        return state, why_nothing

    def _look_with_others(
        self, step: Step, shared: SharedCall, probed: Probed | None
    ) -> tuple[CachedState | None, str | None]:
        """Compare with what is held of the track whose turn it is. All that is asked here has the
        same answer on each rank, and so each gathers or none."""
        self.identify(step, self._reader.read_shared(shared))
        state, why_nothing = self._usable(step.match.track, step)
        regions = step.plan.regions
        step.injected = injected_now(step.values, regions, state, self._batch_dim)
        compares = Need.DIFF in step.plan.needs or any(region.injected for region in regions)
        if state is not None and compares:
            asked = self._asked(step, probed, state)
            step.reading = self._reader.add_shared_sums(step.reading, shared, step.values, asked)
            if step.reading.why_apart is not None:
                step.match = step.match.doubted(step.reading.why_apart)
        return state, why_nothing

    def look_no_further(self, step: Step) -> None:
        """Find only whose step it is, where nothing is to be decided."""
        if step.shared is None:
            self.identify(step, self._reader.finish(step.begun, step.values, Asked()))
        else:
            self.identify(step, self._reader.read_shared(step.shared))

    def identify(self, step: Step, reading: Reading) -> None:
        """Which track goes on, by what was read."""
        table, latents = step.model.requests, self.latents_of(step)
        shape, taken = tuple([t.shape for t in tensors(latents)]), objects_of(latents)
        seen = Fingerprint(reading.clock, reading.sample, shape, taken, self._signature)
        step.reading, step.call = reading, seen
        if reading.why_apart is None:
            step.match = find_track(step.conditioning.tracks, step.call, table.known, step.partner)
        else:
            begun = begin(reading.clock, shape, Known())
            step.match = Match(None, begun).doubted(reading.why_apart)
        track, num_steps = step.match.track, step.plan.settings.common.num_inference_steps
        step.passes = () if track is None else track.companions_at(step.call)
        history = History() if track is None else track.history.value()
        step.history = history.seen_by(step.plan.rule, num_steps)

    def _reading(
        self, step: Step, begun: Begun, probed: Probed | None, state: CachedState | None
    ) -> Reading:
        asked = self._asked(step, probed, state)
        return self._reader.finish(begun, step.values, asked)

    def _asked(self, step: Step, probed: Probed | None, state: CachedState | None) -> Asked:
        """`state` may be of another shape."""
        assert step.injected is not None
        injected = step.injected.moved(state)
        if probed is None or Need.DIFF not in step.plan.needs:
            return Asked(injected=injected)
        first = None if state is None else state.regions[0]
        ends = None if state is None else state.ends
        probed = probed.against(None if first is None else first.probe)
        return Asked(probed, None if ends is None else ends.moved, injected)

    def _usable(self, track: Track | None, step: Step) -> tuple[CachedState | None, str | None]:
        """What is held of a track, if this step can use it; else why not."""
        if track is None:
            return None, "new image"
        state = track.state
        if state is None:
            return None, track.lost or "nothing kept"
        assert isinstance(state, CachedState)
        if state.signature != self._signature:
            return None, "the graph changed"
        if not step.weights.are_those_of(state.weights):
            return None, "the weights changed"
        unlike = step.plan.why_unlike(state.plan)
        return (state, None) if unlike is None else (None, unlike)
