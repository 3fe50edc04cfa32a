"""The driver: walks the trunk of one Dynamo graph, decides, skips or computes.

    prologue, blocks | look, decide | region or its estimate | blocks | decide | ... | epilogue

Straight Python over compiled functions; no FX. One driver serves all models, requests and shapes
of its graph: what differs between them lies in their state, and weights come with each call.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dit_cachegraph import ops
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.policy.rule import Decision, History, Need, Observation, ProbeKind
from dit_cachegraph.runtime.cache_state import Image, Kept, RegionKept
from dit_cachegraph.runtime.call_note import CallNote, current_note
from dit_cachegraph.runtime.commit_step import (
    Done,
    Now,
    Outcome,
    Passed,
    commit_step,
    history_of,
)
from dit_cachegraph.runtime.conditioning import latents_identity, versions_of
from dit_cachegraph.runtime.controls import Entered, entered
from dit_cachegraph.runtime.effects import bases_of, error_sums, estimates, kept_after, put
from dit_cachegraph.runtime.find_image import Match, find_image, find_partner
from dit_cachegraph.runtime.models import REGISTRY, ModelState
from dit_cachegraph.runtime.observe import Observer, companions_of, fits, noise_of
from dit_cachegraph.runtime.recording import record
from dit_cachegraph.runtime.request import current_request
from dit_cachegraph.runtime.segment_runner import SegmentRunner
from dit_cachegraph.runtime.sight import Sight
from dit_cachegraph.runtime.signal import SignalReader
from dit_cachegraph.runtime.step_plan import PlanTable
from dit_cachegraph.runtime.step_reader import Seen, Values, gatherer
from dit_cachegraph.runtime.weights import Weights, WeightsReader


class _Look(NamedTuple):
    """What a step found out about itself: whose it is, what happened before, what it may use."""

    sight: Sight
    match: Match
    history: History
    kept: Kept | None
    why_nothing: str | None
    seen: Seen
    controls: Entered


class CachedModel:
    """What Dynamo calls at each step: the compiled trunk with its cache."""

    def __init__(
        self,
        compiled: CompiledTrunk,
        options: Mapping[str, object],
        called: type[nn.Module] | None,
    ) -> None:
        self.compiled, self._called = compiled, called
        self.plans = PlanTable(compiled, options)
        self._signature = compiled.trunk.signature
        self._segments = SegmentRunner(compiled)
        self._weights = WeightsReader(compiled.roles)
        self._first_weight = next(iter(compiled.roles.trunk_parameters), None)
        self._conditioning = gatherer(compiled.roles.conditioning)
        self._settled = gatherer(_settled(compiled))
        self._latents = gatherer(compiled.roles.latents)
        self._observer = Observer(compiled)
        self._signal = SignalReader(compiled)
        self._weightless = ModelState()

    def __call__(self, *args: object) -> tuple[object, ...]:
        values = self._segments.values_of(args)
        now = self._now(values)
        if not now.plan.settings.common.enabled:
            return self._run_uncached(values, now)
        return self._run_step(values, now)

    def _now(self, values: Values) -> Now:
        """Whose call this is, and by which settings it goes: read once a step."""
        request = current_request()
        weights = self._weights.read(values)
        model = self._model(values, weights)
        model.graphs.setdefault(id(self), self)
        key = None if request is None else request.key
        note = None if self.compiled.roles.embeds_timestep else current_note(self._called)
        told = self._conditioning(values) if note is None else note.conditioning
        versions = versions_of(self._settled(values) if note is None else told)
        plan = self.plans.plan(model.overrides, () if request is None else request.overrides)
        branch = model.branches.find(key, told, versions)
        guess = branch.images[-1] if branch.images else None
        partner = None
        if len(branch.images) > 1:
            latents = latents_identity(self._latents_of(values, note))
            partner = find_partner(branch, model.branches.called_with(latents))
        return Now(request, model, branch, plan, partner or guess, partner, note, weights)

    def _latents_of(self, values: Values, note: CallNote | None) -> Sequence[object]:
        return self._latents(values) if note is None else note.latents

    def _model(self, values: Values, weights: Weights) -> ModelState:
        """The state of the model whose weights these are; one of the graph's own without any."""
        if self._first_weight is None:
            return self._weightless
        found = REGISTRY.by_weight(values[self._first_weight])
        return found if found is not None else REGISTRY.of_weights(weights.tensors)

    def _results(self, values: Values) -> tuple[object, ...]:
        return tuple(values[slot] for slot in self.compiled.trunk.results)

    def _run_uncached(self, values: Values, now: Now) -> tuple[object, ...]:
        sight = self._sight(values, now, self._observer.read_clock(values, now))
        match = find_image(now.branch.images, sight, now.model.known, now.partner)
        self._segments.run(values, 0, len(self.compiled.trunk.segments))
        history = self._history(now, match)
        done = (Done(Decision(False, "disabled"), Observation(), None, None),)
        commit_step(now, Outcome(sight, match, history, done, None), self.compiled.trunk)
        return self._results(values)

    def _run_step(self, values: Values, now: Now) -> tuple[object, ...]:
        trunk, look, at = self.compiled.trunk, None, 0
        done: list[Done] = []
        self._segments.run(values, 0, 1)
        for i, region in enumerate(now.plan.regions):
            self._segments.run(values, at + 1, region.probe_from + 1)
            hidden_in = None if region.probe_in is None else _tensor(values[region.probe_in])
            self._segments.run(values, region.probe_from + 1, region.probe_boundary + 1)
            hidden = self._probed(values, now, i)
            if look is None:
                look = self._look(values, now, hidden, hidden_in)
            done.append(self._decide(values, now, look, done, hidden, hidden_in))
            del hidden, hidden_in
            self._segments.run(values, region.probe_boundary + 1, region.start + 1)
            done[-1] = self._do(values, now, look, i, done[-1])
            at = region.stop
        if look is None:
            look = self._look(values, now, None, None)
            done.append(Done(Decision(False, "empty region"), Observation(), None, None))
        self._segments.run(values, at + 1, trunk.num_blocks + 2)
        results = self._results(values)
        outcome = Outcome(look.sight, look.match, look.history, tuple(done), look.kept)
        commit_step(now, outcome, trunk, Passed(self._latents_of(values, now.note), results))
        return results

    def _look(
        self, values: Values, now: Now, hidden: Tensor | None, hidden_in: Tensor | None
    ) -> _Look:
        """Read timestep, sketch and diff, in one copy to the host, and say whose step it is. A
        second copy is needed only where it is not that of the image that was guessed."""
        kept, why_nothing = self._usable(now.guess, now)
        controls = entered(values, now.plan.regions, kept, self.compiled.trunk.batch_dim)
        read_first, moved = self._observer.read_first, controls.moved(kept)
        seen = read_first(values, now, kept, hidden, hidden_in, moved)
        sight = self._sight(values, now, seen)
        match = find_image(now.branch.images, sight, now.model.known, now.partner)
        if match.image is not now.guess:
            kept, why_nothing = self._usable(match.image, now)
            if kept is not None:
                moved = controls.moved(kept)
                seen = read_first(values, now, kept, hidden, hidden_in, moved)
        history = self._history(now, match)
        if kept is not None:
            why_nothing = match.moment.doubt or controls.why_of_no_use(kept, seen.controls)
            kept = kept if why_nothing is None else None
        if kept is not None and match.moment.restarts_at is not None:
            kept = kept.restarted(match.moment.restarts_at - 1)
        return _Look(sight, match, history, kept, why_nothing, seen, controls)

    def _probed(self, values: Values, now: Now, i: int) -> Tensor | None:
        """What a region compares, where its boundary is reached."""
        region, probe = now.plan.regions[i], now.plan.spans[i].probe
        if probe is not None and probe.kind is ProbeKind.MODULATED_INPUT:
            return self._signal.read(values, now, probe.noise_filter)
        return None if region.probe_out is None else _tensor(values[region.probe_out])

    def _history(self, now: Now, match: Match) -> History:
        num_steps = now.plan.settings.common.num_inference_steps
        return history_of(match).seen_by(now.plan.rule, num_steps)

    def _sight(self, values: Values, now: Now, seen: Seen) -> Sight:
        latents = self._latents_of(values, now.note)
        shape = tuple([t.shape for t in latents if isinstance(t, Tensor)])
        identity, versions = latents_identity(latents), versions_of(latents)
        return Sight(seen.clock, seen.sketch, shape, identity, self._signature, versions)

    def _usable(self, image: Image | None, now: Now) -> tuple[Kept | None, str | None]:
        """What is kept of an image, if this step can use it; else why not."""
        kept = None if image is None else image.kept
        if image is None:
            return None, "new image"
        if kept is None:
            return None, image.lost or "nothing kept"
        if kept.signature != self._signature:
            return None, "the graph changed"
        if not now.weights.are_those_of(kept.weights):
            return None, "the weights changed"
        if kept.spans != now.plan.spans:
            return None, "region changed"
        if kept.predictors != now.plan.predictors:
            return None, "predictor changed"
        return kept, None

    def _decide(
        self,
        values: Values,
        now: Now,
        look: _Look,
        before: Sequence[Done],
        hidden: Tensor | None,
        hidden_in: Tensor | None,
    ) -> Done:
        """Reuse or compute the next region, with what it may use, and its probe where that is what
        the next step is compared with."""
        rule, probe = now.plan.rule, now.plan.spans[len(before)].probe
        earlier = tuple([done.decision for done in before])
        kept, why_nothing = self._of_region(values, now, look, len(before), hidden)
        noise = noise_of(look.match, look.sight)
        reason = self._why_compute(now, look) or rule.why_compute(look.history, earlier, noise)
        reason = reason or why_nothing
        others = companions_of(look.match, look.sight, rule, len(before))
        sums, change = (look.seen.moved, look.seen.size), look.seen.change
        seen = Observation(*sums, earlier, others, change)
        anchor = None if kept is None else kept.probe
        if before and reason is None and Need.DIFF in rule.needs and anchor is not None:
            assert probe is not None and hidden is not None, "an anchor is of a probe"
            sums = self._observer.read_region(probe, hidden, hidden_in, anchor)
            seen = seen._replace(moved=sums.moved, size=sums.size)
        decision = Decision(False, reason) if reason else rule.decide(look.history, seen)
        if probe is None or hidden is None or (decision.hit and not probe.is_of_last_step):
            return Done(decision, seen, kept, None)
        new = ops.probe_value(hidden, hidden_in, probe.downsample_factor)
        return Done(decision, seen, kept, new)

    def _of_region(
        self, values: Values, now: Now, look: _Look, i: int, hidden: Tensor | None
    ) -> tuple[RegionKept | None, str | None]:
        """What is kept of one region, if this step can use it; else why not."""
        region, probe = now.plan.regions[i], now.plan.spans[i].probe
        kept = None if look.kept is None else look.kept.regions[i]
        if kept is None:
            return None, look.why_nothing or "nothing kept"
        if hidden is not None and probe is not None:
            is_same = fits(kept.probe, hidden, probe)
        else:
            is_same = all(
                effect.live_in is None
                or _tensor(values[effect.live_in]).shape == snapshots[-1].shape
                for effect, snapshots in zip(region.effects, kept.snapshots, strict=True)
            )
        return (kept, None) if is_same else (None, "new shape")

    def _why_compute(self, now: Now, look: _Look) -> str | None:
        """Why a step computes whatever the rule says."""
        if now.plan.settings.common.dry_run is not None:
            return "dry run"
        bound = now.plan.settings.common.max_observed_error
        if look.match.moment.doubt is not None:
            return look.match.moment.doubt
        if bound is not None and look.history.largest_error > bound:
            return f"observed error {look.history.largest_error:.3g} > {bound:g}"
        return None

    def _do(self, values: Values, now: Now, look: _Look, i: int, done: Done) -> Done:
        """Run a region or put the estimate in its place."""
        region, predictor, step = now.plan.regions[i], now.plan.predictors[i], look.history.step
        kept, probe = done.kept, done.probe
        bases = bases_of(values, region, predictor)
        if done.decision.hit:
            assert kept is not None
            put(values, region, estimates(region, kept, bases, predictor, step))
            return done._replace(kept=kept if probe is None else kept._replace(probe=probe))
        self._segments.run(values, region.start + 1, region.stop + 1)
        sums = None
        if kept is not None and now.plan.settings.observes_error:
            estimated = estimates(region, kept, bases, predictor, step)
            sums = error_sums(values, region, estimated, self.compiled.trunk.batch_dim)
        recorded = None
        if now.plan.settings.common.dry_run is not None:
            recorded = record(values, region, bases, probe, self.compiled.trunk.batch_dim)
            recorded = recorded._replace(noise=noise_of(look.match, look.sight))
        new = kept_after(values, region, bases, kept, predictor, step)
        new = new._replace(probe=probe, controls=look.controls.of(region))
        return done._replace(kept=new, error_sums=sums, recorded=recorded)


def _settled(compiled: CompiledTrunk) -> tuple[int, ...]:
    """The conditioning that says whose a call is by what was written into it: all but what controls
    are made of, where a write moves the control and nothing else."""
    sources = {i for control in compiled.trunk.injected for i in control.sources}
    return tuple([i for i in compiled.roles.conditioning if i not in sources])


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
