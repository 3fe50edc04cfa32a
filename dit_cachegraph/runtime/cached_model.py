"""The driver: walks the trunk of one Dynamo graph, decides, skips or computes.

    prologue, blocks 0..Fn-1 | observe, decide | Fn..N-Bn-1 or replay | N-Bn..N-1, epilogue

Straight Python over compiled functions; no FX. One driver serves all models, requests and shapes
of its graph: what differs between them lies in their state, and weights come with each call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.config import Settings, resolve
from dit_cachegraph.plan import CompiledSegment, CompiledTrunk, Region
from dit_cachegraph.policy.rule import Decision, Observation
from dit_cachegraph.runtime.cache_state import Image, Kept
from dit_cachegraph.runtime.call_note import CallNote, current_note
from dit_cachegraph.runtime.commit_step import Now, Outcome, commit_step, history_of
from dit_cachegraph.runtime.conditioning import latents_identity
from dit_cachegraph.runtime.find_image import Match, Sight, find_image, find_partner
from dit_cachegraph.runtime.models import REGISTRY, ModelState
from dit_cachegraph.runtime.region import plan_region
from dit_cachegraph.runtime.request import Request, current_request
from dit_cachegraph.runtime.step_reader import (
    Seen,
    StepReader,
    Values,
    gatherer,
    read_clock_of,
)

MAX_SETTINGS_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Call:
    """One segment, ready to run: gathers its inputs, and which values die with it."""

    function: CompiledSegment
    gather: Callable[[Values], Sequence[object]]
    dead: tuple[int, ...]
    outputs: tuple[int | None, ...]


class CachedModel:
    """What Dynamo calls at each step: the compiled trunk with its cache."""

    def __init__(self, compiled: CompiledTrunk, options: Mapping[str, object]) -> None:
        trunk = compiled.trunk
        self.compiled = compiled
        self.options = dict(options)
        self._signature = trunk.signature
        self._calls = tuple(self._prepare(i) for i in range(len(trunk.segments)))
        self._blank = [None] * (trunk.num_slots - trunk.num_arguments)
        self._weights = gatherer(compiled.roles.trunk_parameters)
        self._first_weight = next(iter(compiled.roles.trunk_parameters), None)
        self._conditioning = gatherer(compiled.roles.conditioning)
        self._latents = gatherer(compiled.roles.latents)
        self._reader = StepReader(compiled)
        self._weightless = ModelState()
        self._resolved: dict[object, tuple[Settings, Region]] = {}

    def _prepare(self, i: int) -> _Call:
        trunk = self.compiled.trunk
        segment = trunk.segments[i]
        dead = [
            slot
            for slot in range(trunk.num_arguments, trunk.num_slots)
            if trunk.last_use[slot] == i
        ]
        function = self.compiled.functions[segment.kind]
        return _Call(function, gatherer(segment.inputs), tuple(dead), segment.outputs)

    def __call__(self, *args: object) -> tuple[object, ...]:
        values: Values = [*args, *self._blank]
        now = self._now(values)
        if not now.settings.common.enabled:
            return self._run_uncached(values, now)
        return self._run_step(values, now)

    def _now(self, values: Values) -> Now:
        """Whose call this is, and by which settings it goes: read once a step."""
        request = current_request()
        model = self._model(values)
        model.graphs.setdefault(id(self), self)
        key = None if request is None else request.key
        note = None if self.compiled.roles.embeds_timestep else current_note()
        told = self._conditioning(values) if note is None else note.conditioning
        settings, region = self._settings(model, request)
        branch = model.branches.find(key, told)
        guess = branch.images[-1] if branch.images else None
        partner = None
        if len(branch.images) > 1:
            latents = latents_identity(self._latents_of(values, note))
            partner = find_partner(branch, model.branches.called_with(latents))
        return Now(request, model, branch, settings, region, partner or guess, partner, note)

    def _latents_of(self, values: Values, note: CallNote | None) -> Sequence[object]:
        return self._latents(values) if note is None else note.latents

    def _model(self, values: Values) -> ModelState:
        """The state of the model whose weights these are; one of the graph's own without any."""
        if self._first_weight is None:
            return self._weightless
        found = REGISTRY.by_weight(values[self._first_weight])
        return found if found is not None else REGISTRY.of_weights(self._weights(values))

    def _settings(self, model: ModelState, request: Request | None) -> tuple[Settings, Region]:
        """The settings of this call and the region that they ask for."""
        if not model.overrides and (request is None or not request.overrides):
            return self._resolve_once((), {})
        overrides = {**model.overrides, **(request.overrides if request is not None else {})}
        return self._resolve_once(tuple(overrides.items()), overrides)

    def _resolve_once(
        self, key: object, overrides: Mapping[str, object]
    ) -> tuple[Settings, Region]:
        found = self._resolved.get(key)
        if found is None:
            trunk = self.compiled.trunk
            settings = resolve(self.options, overrides)
            found = settings, plan_region(trunk, *settings.rule.region(trunk.num_blocks))
            if len(self._resolved) > MAX_SETTINGS_KEPT:
                self._resolved.clear()
            self._resolved[key] = found
        return found

    def _run(self, values: Values, start: int, stop: int) -> None:
        """Run segments `start..stop-1`, dropping each value after its last use."""
        for call in self._calls[start:stop]:
            inputs = list(call.gather(values))
            for slot in call.dead:
                values[slot] = None
            for out, value in zip(call.outputs, call.function(inputs), strict=True):
                if out is not None:
                    values[out] = value

    def _results(self, values: Values) -> tuple[object, ...]:
        return tuple(values[slot] for slot in self.compiled.trunk.results)

    def _run_uncached(self, values: Values, now: Now) -> tuple[object, ...]:
        sight = self._sight(values, now, self._read_clock(values, now))
        match = find_image(now.branch.images, sight, now.model.known, now.partner)
        self._run(values, 0, len(self._calls))
        outcome = Outcome(sight, match, Decision(False, "disabled"), None)
        commit_step(now, outcome, self.compiled.trunk.num_blocks)
        return self._results(values)

    def _run_step(self, values: Values, now: Now) -> tuple[object, ...]:
        region, num_blocks = now.region, self.compiled.trunk.num_blocks
        self._run(values, 0, 1)
        hidden_in = values[region.probe_in]
        self._run(values, 1, region.probe_boundary + 1)
        hidden = values[region.probe_out]
        assert isinstance(hidden, Tensor) and isinstance(hidden_in, Tensor)
        sight, match, observation, kept = self._look(values, now, hidden, hidden_in)
        decision = _decide(now, match, observation)
        probe = None if decision.hit else ops.residual(hidden, hidden_in)
        del hidden, hidden_in
        self._run(values, region.probe_boundary + 1, region.start + 1)
        if decision.hit:
            assert kept is not None, "a hit without anything kept"
            self._replay(values, region, kept)
        else:
            kept = self._compute(values, region, probe)
        self._run(values, region.stop + 1, num_blocks + 2)
        commit_step(now, Outcome(sight, match, decision, kept), num_blocks)
        return self._results(values)

    def _look(
        self, values: Values, now: Now, hidden: Tensor, hidden_in: Tensor
    ) -> tuple[Sight, Match, Observation, Kept | None]:
        """Read timestep, sketch and diff, in one copy to the host, and say whose step it is. A
        second copy is needed only where it is not that of the image that was guessed."""
        kept, why_nothing = self._usable(now.guess, now.region, hidden)
        seen = self._read(values, now, kept, hidden, hidden_in)
        sight = self._sight(values, now, seen)
        match = find_image(now.branch.images, sight, now.model.known, now.partner)
        if match.image is not now.guess:
            kept, why_nothing = self._usable(match.image, now.region, hidden)
            if kept is not None:
                seen = self._read(values, now, kept, hidden, hidden_in)
        return sight, match, Observation(seen.moved, seen.size, why_nothing), kept

    def _read(
        self, values: Values, now: Now, kept: Kept | None, hidden: Tensor, hidden_in: Tensor
    ) -> Seen:
        if now.settings.rule.needs_diff:
            # With nothing to compare with, what comes back as the diff is not looked at.
            previous = hidden if kept is None else kept.probe
            seen = self._reader.read_all(values, hidden, hidden_in, previous)
            if now.note is None:
                return seen
            told = self._read_clock(values, now)
            return seen._replace(clock=told.clock, sketch=told.sketch)
        if now.request is not None:
            return self._reader.read_host_clock(values)
        return self._read_clock(values, now)

    def _read_clock(self, values: Values, now: Now) -> Seen:
        if now.note is None:
            return self._reader.read_clock(values)
        return read_clock_of(now.note.timesteps, now.note.latents)

    def _sight(self, values: Values, now: Now, seen: Seen) -> Sight:
        latents = self._latents_of(values, now.note)
        shape = tuple([t.shape for t in latents if isinstance(t, Tensor)])
        return Sight(seen.clock, seen.sketch, shape, latents_identity(latents), self._signature)

    def _compute(self, values: Values, region: Region, probe: Tensor | None) -> Kept:
        """Run the region and keep its effect on every value that leaves it."""
        live_ins = [None if r.live_in is None else values[r.live_in] for r in region.replays]
        self._run(values, region.start + 1, region.stop + 1)
        effects = []
        for replay, live_in in zip(region.replays, live_ins, strict=True):
            out = values[replay.live_out]
            assert isinstance(out, Tensor)
            if isinstance(live_in, Tensor):
                effects.append(ops.residual(out, live_in))
            else:
                effects.append(out.clone())
        assert probe is not None
        span = (region.start, region.stop, region.probe_boundary)
        return Kept(self._signature, span, probe, tuple(effects))

    def _replay(self, values: Values, region: Region, kept: Kept) -> None:
        live_ins, residuals, outs = [], [], []
        for replay, effect in zip(region.replays, kept.effects, strict=True):
            live_in = None if replay.live_in is None else values[replay.live_in]
            if isinstance(live_in, Tensor):
                live_ins.append(live_in)
                residuals.append(effect)
                outs.append(replay.live_out)
            else:
                values[replay.live_out] = effect.clone()
        for slot, value in zip(outs, ops.residual_apply(live_ins, residuals), strict=True):
            values[slot] = value
        for slot in region.dead_on_hit:
            values[slot] = None

    def _usable(
        self, image: Image | None, region: Region, hidden: Tensor
    ) -> tuple[Kept | None, str | None]:
        """What is kept of an image, if this step can use it; else why not."""
        kept = None if image is None else image.kept
        if image is None:
            reason = "new image"
        elif region.is_empty:
            reason = "empty region"
        elif kept is None:
            reason = image.lost or "nothing kept"
        elif kept.signature != self._signature:
            reason = "the graph changed"
        elif kept.region != (region.start, region.stop, region.probe_boundary):
            reason = "region changed"
        elif kept.probe.shape != hidden.shape:
            reason = "new shape"
        else:
            return kept, None
        return None, reason


def _decide(now: Now, match: Match, seen: Observation) -> Decision:
    if now.region.is_empty:
        return Decision(False, "empty region")
    if match.moment.doubt is not None:
        return Decision(False, match.moment.doubt)
    return now.settings.rule.decide(history_of(match), seen)
