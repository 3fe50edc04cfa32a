"""The driver: walks the trunk of one Dynamo graph, decides, skips or computes.

    prologue, blocks 0..Fn-1 | observe, decide | Fn..N-Bn-1 or replay | N-Bn..N-1, epilogue

Straight Python over compiled functions; no FX. One driver serves all models, requests and shapes
of its graph: what differs between them lies in their state, and weights come with each call.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dit_cachegraph import ops
from dit_cachegraph.config import Settings, resolve
from dit_cachegraph.plan import CompiledSegment, CompiledTrunk, Region
from dit_cachegraph.policy.rule import Decision, History, Observation
from dit_cachegraph.runtime.cache_state import Branch, ImageTally, Kept
from dit_cachegraph.runtime.models import REGISTRY, ModelState
from dit_cachegraph.runtime.region import plan_region
from dit_cachegraph.runtime.request import Request, current_request
from dit_cachegraph.runtime.step_log import Step, log_image
from dit_cachegraph.runtime.step_reader import StepReader, Values, gatherer
from dit_cachegraph.runtime.trajectory import AMBIGUOUS, Moment, advance

MAX_SETTINGS_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Call:
    """One segment, ready to run: gathers its inputs, and which values die with it."""

    function: CompiledSegment
    gather: Callable[[Values], Sequence[object]]
    dead: tuple[int, ...]
    outputs: tuple[int | None, ...]


class _Now(NamedTuple):
    """What a step knows of itself before it decides."""

    request: Request | None
    model: ModelState
    branch: Branch
    settings: Settings
    region: Region


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

    def _now(self, values: Values) -> _Now:
        """Whose call this is, and by which settings it goes: read once a step."""
        request = current_request()
        model = self._model(values)
        model.graphs.setdefault(id(self), self)
        key = None if request is None else request.key
        branch = model.branches.find(key, self._conditioning(values))
        settings, region = self._settings(model, request)
        return _Now(request, model, branch, settings, region)

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

    def _run_uncached(self, values: Values, now: _Now) -> tuple[object, ...]:
        branch = now.branch
        branch.kept.clear()
        self._run(values, 0, len(self._calls))
        branch.history = branch.history._replace(step=branch.history.step + 1)
        decision = Decision(False, "disabled")
        now.model.log.add(_step(branch.history.step - 1, None, decision, branch))
        return self._results(values)

    def _run_step(self, values: Values, now: _Now) -> tuple[object, ...]:
        region, num_blocks = now.region, self.compiled.trunk.num_blocks
        self._run(values, 0, 1)
        hidden_in = values[region.probe_in]
        self._run(values, 1, region.probe_boundary + 1)
        hidden = values[region.probe_out]
        assert isinstance(hidden, Tensor) and isinstance(hidden_in, Tensor)
        kept = now.branch.kept.get(self._signature)
        moment, observation, timestep = self._look(values, now, kept, hidden, hidden_in)
        history = _history(now.branch, moment)
        decision = _decide(now, moment, history, observation)
        probe = None if decision.hit else ops.residual(hidden, hidden_in)
        del hidden, hidden_in
        self._run(values, region.probe_boundary + 1, region.start + 1)
        if decision.hit:
            assert kept is not None, "a hit without anything kept"
            self._replay(values, region, kept)
        else:
            kept = self._compute(values, region, probe)
        self._run(values, region.stop + 1, num_blocks + 2)
        self._commit(now, moment, history, decision, kept, timestep)
        return self._results(values)

    def _look(
        self, values: Values, now: _Now, kept: Kept | None, hidden: Tensor, hidden_in: Tensor
    ) -> tuple[Moment, Observation, float | None]:
        """Read timestep and diff, in one copy to the host, and say which step this is."""
        nothing_kept = _why_nothing(kept, now.region, hidden)
        # With nothing to compare with, only the clocks are read from what comes back.
        previous = hidden if nothing_kept is not None or kept is None else kept.probe
        if now.settings.rule.needs_diff:
            seen = self._reader.read_all(values, hidden, hidden_in, previous)
        else:
            seen = self._reader.read_clock(values, is_named=now.request is not None)
        shape = tuple([t.shape for t in self._latents(values) if isinstance(t, Tensor)])
        moment = advance(now.branch.trajectory, seen.clock, shape, now.model.direction)
        if now.request is not None and moment.doubt == AMBIGUOUS:
            moment = moment._replace(doubt=None)  # The user's name for it settles whose call it is.
        if moment.is_new_image:
            nothing_kept = "new image"
        observation = Observation(seen.moved, seen.size, nothing_kept)
        return moment, observation, seen.clock[0] if seen.clock else None

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
        return Kept((region.start, region.stop, region.probe_boundary), probe, tuple(effects))

    def _replay(self, values: Values, region: Region, kept: Kept) -> None:
        for replay, effect in zip(region.replays, kept.effects, strict=True):
            live_in = None if replay.live_in is None else values[replay.live_in]
            if isinstance(live_in, Tensor):
                values[replay.live_out] = ops.residual_apply(live_in, effect)
            else:
                values[replay.live_out] = effect.clone()
        for slot in region.dead_on_hit:
            values[slot] = None

    def _commit(
        self,
        now: _Now,
        moment: Moment,
        history: History,
        decision: Decision,
        kept: Kept | None,
        timestep: float | None,
    ) -> None:
        """The only place where state changes: an exception before it leaves the last step's."""
        branch = now.branch
        if moment.is_new_image:
            log_image(branch)
            branch.kept.clear()
        if not decision.hit and kept is not None and not now.region.is_empty:
            branch.kept[self._signature] = kept
        branch.trajectory = moment.trajectory
        branch.history = history.after(decision)
        if moment.trajectory.is_direction_sure:
            now.model.direction = moment.trajectory.direction
        now.model.log.add(_step(history.step, timestep, decision, branch))
        self._tally(now, branch.image, decision)
        if branch.history.step == now.settings.common.num_inference_steps:
            log_image(branch)

    def _tally(self, now: _Now, image: ImageTally, decision: Decision) -> None:
        num_blocks = self.compiled.trunk.num_blocks
        skipped = now.region.stop - now.region.start if decision.hit else 0
        image.num_hits += decision.hit
        image.num_computed += not decision.hit
        image.num_blocks += num_blocks
        image.num_blocks_run += num_blocks - skipped
        image.threshold = now.settings.rule.threshold
        if decision.diff is not None and math.isfinite(decision.diff):
            known = image.smallest_diff
            image.smallest_diff = decision.diff if known is None else min(decision.diff, known)


def _why_nothing(kept: Kept | None, region: Region, hidden: Tensor) -> str | None:
    if region.is_empty:
        return "empty region"
    if kept is None:
        return "nothing kept"
    if kept.region != (region.start, region.stop, region.probe_boundary):
        return "region changed"
    if kept.probe.shape != hidden.shape:
        return "new shape"
    return None


def _decide(now: _Now, moment: Moment, history: History, seen: Observation) -> Decision:
    if now.region.is_empty:
        return Decision(False, "empty region")
    if moment.doubt is not None:
        return Decision(False, moment.doubt)
    return now.settings.rule.decide(history, seen)


def _history(branch: Branch, moment: Moment) -> History:
    if moment.restarts_at is None:
        return branch.history
    return History(step=moment.restarts_at)


def _step(index: int, timestep: float | None, decision: Decision, branch: Branch) -> Step:
    return Step(index, timestep, decision.hit, decision.reason, decision.diff, branch.label)
