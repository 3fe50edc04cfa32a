"""The driver: whose call it is, its step, run over the trunk of one Dynamo graph, and its end.

    begin | walk: run a stage, look, decide, ... | end: commit, tell observers

Straight Python over compiled functions; no FX. One driver serves all models, requests and shapes
of its graph: what differs between them lies in their state, and weights come with each call.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from dit_cachegraph.calls import note_cached
from dit_cachegraph.cuda_graphs.capturer import Capturer
from dit_cachegraph.cuda_graphs.stage_graphs import GraphedRunner
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import REGISTRY, ModelState
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.planning.step_plan import PlanTable
from dit_cachegraph.ranks.group import ranks_of
from dit_cachegraph.records import StepRecord
from dit_cachegraph.requests.conditioning import BeginNumbers
from dit_cachegraph.requests.handoff import CallHandoff, current_handoff
from dit_cachegraph.requests.latents import objects_of, versions_of
from dit_cachegraph.requests.match import find_partner
from dit_cachegraph.requests.request import Caller, Request, current_caller, together
from dit_cachegraph.retention.lifetimes import expire
from dit_cachegraph.retention.table import CalledRow
from dit_cachegraph.runtime.commit import commit
from dit_cachegraph.runtime.look import Looker
from dit_cachegraph.runtime.reading import StepReader
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.runtime.walk import Walker
from dit_cachegraph.runtime.weights import Weights, WeightsReader
from dit_cachegraph.segments.segment_runner import SegmentRunner
from dit_cachegraph.segments.slots import Values, gatherer, tensors
from dit_cachegraph.step_log import StepReport


class Called(NamedTuple):
    """The model of a call, its weights, what an earlier fragment handed on, and when it began."""

    model: ModelState
    weights: Weights
    handoff: CallHandoff | None
    began: float


class CachedModel:
    """What Dynamo calls at each step: the compiled trunk with its cache."""

    def __init__(
        self,
        compiled: CompiledTrunk,
        options: Mapping[str, object],
        model_class: type[nn.Module] | None,
        *,
        are_weights_frozen: bool = False,
        capturer: Capturer | None = None,
    ) -> None:
        self.compiled, self.model_class = compiled, model_class
        self.are_weights_frozen = are_weights_frozen
        self.plans = PlanTable(compiled.trunk, compiled.roles, options)
        self.segments = SegmentRunner(compiled)
        self.graphed = (
            None if capturer is None else GraphedRunner(compiled, self.segments, capturer)
        )
        self.weights = WeightsReader(compiled.roles, are_frozen=are_weights_frozen)
        self._trunk_weights = gatherer(compiled.roles.trunk_parameters)
        plain = set(compiled.roles.trunk_parameters) - set(compiled.roles.wrapped_parameters)
        self._first_weight = min(plain or compiled.roles.trunk_parameters, default=None)
        self._conditioning = gatherer(compiled.roles.conditioning)
        self._settled = gatherer(compiled.settled_conditioning)
        self._latents = gatherer(compiled.roles.latents)
        self._ranks = ranks_of(compiled.trunk.groups.names, REGISTRY.meetings)
        self.reader = StepReader(compiled, self._ranks)
        self.looker = Looker(compiled, self.reader)
        self.walker = Walker(compiled, self.reader, self.looker)
        self._weightless = ModelState()

    def __call__(self, *args: object) -> tuple[object, ...]:
        return self.run(self.segments.values_of(args), current_caller())

    def run(self, values: Values, caller: Caller | None) -> tuple[object, ...]:
        """A call, by whoever calls."""
        if self._ranks is None:
            return self.finish(self.begin(values, caller))
        with self._ranks.together:
            return self.finish(self.begin(values, caller))

    def finish(self, step: Step) -> tuple[object, ...]:
        """Run a step that has begun, and return what the call does."""
        run = self.runner_of(step.model)
        step.rerun = self.segments.run if self._ranks is None else None
        for start, stop in self.walker.walk(step):
            run(step.values, start, stop)
        return self.end(step)

    def runner_of(self, model: ModelState) -> Callable[[Values, int, int], None]:
        """What runs segments `start..stop-1` of a model on some values."""
        return self.segments.run if self.graphed is None else self.graphed.of(model).run

    def end(self, step: Step) -> tuple[object, ...]:
        """All has run: write it down."""
        step.latents = tuple(self.looker.latents_of(step))
        step.results = tuple(step.values[slot] for slot in self.compiled.trunk.results)
        report = commit(step, self.compiled.trunk, self._ranks)
        if REGISTRY.observers:
            REGISTRY.observers.tell(self._step_record(step, report))
        return step.results

    def _step_record(self, step: Step, report: StepReport) -> StepRecord:
        num_blocks = self.compiled.trunk.num_blocks
        return StepRecord(
            model="" if self.model_class is None else self.model_class.__name__,
            step=report,
            num_blocks=num_blocks,
            num_blocks_run=num_blocks - report.num_skipped,
            state_nbytes=step.model.requests.held.nbytes,
            seconds=step.seconds,
        )

    def begin(self, values: Values, caller: Caller | None) -> Step:
        """Whose call this is, and by which settings it goes: read once a step."""
        if isinstance(caller, tuple):
            caller = together(caller, self.compiled.trunk.samples.why_together or "")
        step = self.begin_of(self.called(values), values, caller)
        if step.plan.rule.batch_rule == "per_sample":
            _refuse_a_batch(step, tensors(self.looker.latents_of(step)))
        return step

    def called(self, values: Values) -> Called:
        """What is called, told by its weights, and what an earlier fragment handed on."""
        began = time.perf_counter()
        weights, model = self.weights.read(values), self._model(values)
        if id(self) not in model.graphs:
            model.join(self, self.plans.options)
        note_cached(model)
        embeds_timestep = self.compiled.roles.embeds_timestep
        handoff = None if embeds_timestep else current_handoff(self.model_class)
        return Called(model, weights, handoff, began)

    def begin_of(
        self,
        called: Called,
        values: Values,
        request: Request | None,
        begin_content: BeginNumbers | None = None,
    ) -> Step:
        """A step of one request. With `begin_content` it may be one of several in the call: that
        begins to sum its conditioning."""
        model, weights, handoff, began = called
        plan = self.plans.plan(model.overrides, () if request is None else request.overrides)
        given = self._conditioning(values) if handoff is None else handoff.conditioning
        versions = versions_of(self._settled(values) if handoff is None else given)
        key, table = None if request is None else request.current_key, model.requests
        expire(table, plan.settings.common.max_idle_seconds)
        if begin_content is None:
            conditioning = table.find(key, tensors(given), versions)
        else:
            taken = self._latents(values) if handoff is None else handoff.latents
            row = CalledRow(objects_of(taken), begin_content)
            conditioning = table.find_row(key, tensors(given), versions, row)
        conditioning.caller = None if request is None else weakref.ref(request)
        tracks = conditioning.tracks
        expected = tracks[-1] if tracks else None
        step = Step(
            values, request, model, plan, conditioning, expected, None, handoff, weights, began
        )
        if len(tracks) > 1:
            latents = objects_of(self.looker.latents_of(step))
            step.partner = find_partner(tracks, table.held.called_with(latents))
            step.expected = step.partner or expected
        return step

    def conditioning_of(self, called: Called, values: Values) -> list[Tensor]:
        """What a call is given beside latents and timestep, here or by an earlier fragment."""
        handoff = called.handoff
        return tensors(self._conditioning(values) if handoff is None else handoff.conditioning)

    def _model(self, values: Values) -> ModelState:
        """The state of the model whose weights these are; one of the graph's own without any."""
        if self._first_weight is None:
            return self._weightless
        found = REGISTRY.by_weight(values[self._first_weight])
        return found or REGISTRY.of_weights(self._trunk_weights(values), self._called_module())

    def _called_module(self) -> nn.Module | None:
        """The module that is called, where that is known beside its weights."""
        return None


def _refuse_a_batch(step: Step, latents: Sequence[Tensor]) -> None:
    """Raises InvalidConfig where the call has several samples, none of which has a handle."""
    num_samples = latents[0].shape[0] if latents and latents[0].dim() > 0 else 1
    if step.plan.settings.common.enabled and num_samples > 1:
        raise InvalidConfig(
            f"batch_rule='per_sample': a batch of {num_samples} was called without a handle for "
            "each sample: call it inside of dit_cachegraph.requests([...]), or let the batch "
            "decide as one, by batch_rule 'max' or 'mean'"
        )
