"""Where a report is made from: the states of the models, and the trunks that were cut."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dit_cachegraph.account.status import Status
from dit_cachegraph.dry_run import Trial, trials
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.freeze import settings_as_config
from dit_cachegraph.links.model import LinkedModel, RefusedLinks
from dit_cachegraph.models import ModelState
from dit_cachegraph.plan import Stream, Trunk, Uncacheable
from dit_cachegraph.planning.step_plan import StepPlan
from dit_cachegraph.report import GraphReport, Report
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.runtime.uncached import UncachedModel


def report_of(
    states: Sequence[ModelState], notes: Sequence[str], statuses: Sequence[Status] = ()
) -> Report:
    """The report of one model, or of the several of a pipeline together."""
    plans = [
        found for state in states for g in list(state.graphs.values()) if (found := _plan(g, state))
    ]
    last = states[-1].last_plan if states else None
    return Report(
        graphs=tuple(_merged([_graph(g, s) for s in states for g in list(s.graphs.values())])),
        steps=tuple(step for state in states for step in state.log.steps),
        num_hits=sum(state.log.tally.num_hits for state in states),
        num_computed=sum(state.log.tally.num_computed for state in states),
        num_blocks=sum(state.log.tally.num_blocks for state in states),
        num_blocks_run=sum(state.log.tally.num_blocks_run for state in states),
        state_nbytes=sum(state.requests.held.nbytes for state in states),
        num_branches=sum(len(state.requests) for state in states),
        settings=tuple(settings_as_config(plan.settings) for _, plan in plans),
        trials=_trials(states, plans),
        notes=tuple(notes),
        statuses=tuple(statuses),
        num_outside=sum(state.calls.num_outside for state in states),
        num_evicted=sum(state.requests.num_evicted for state in states),
        num_expired=sum(state.requests.num_expired for state in states),
        num_compiles=sum(state.num_graphs for state in states),
        last_settings=None if last is None else settings_as_config(last.settings),
        last_regions=_bounds(last),
    )


def _bounds(plan: StepPlan | None) -> tuple[tuple[int, int], ...]:
    regions = () if plan is None else plan.regions
    return tuple((region.start, region.stop) for region in regions)


def _merged(graphs: Sequence[GraphReport]) -> Sequence[GraphReport]:
    """Equal refusals in one."""
    counts = Counter(graph.refusals for graph in graphs if graph.refusals)
    cached = {id(graph): graph for graph in graphs if not graph.refusals}
    refused_once = {graph.refusals: graph for graph in reversed(graphs) if graph.refusals}
    kept = {**cached, **{id(graph): graph for graph in refused_once.values()}}
    return [replace(g, num_graphs=counts.get(g.refusals, 1)) for g in graphs if id(g) in kept]


def _graph(graph: object, state: ModelState) -> GraphReport:
    if isinstance(graph, UncachedModel | RefusedLinks):
        return refused(graph.refusal)
    assert isinstance(graph, CachedModel)
    trunk = graph.compiled.trunk
    report = graph_report(
        trunk,
        num_distinct=graph.compiled.num_compiled,
        regions=_regions(graph, state),
        compile_seconds=graph.compiled.compile_seconds,
        is_linked=isinstance(graph, LinkedModel),
        is_loaded=graph.compiled.is_loaded,
    )
    graphed = graph.graphed
    return replace(report, cuda_graphs=() if graphed is None else graphed.of(state).lines())


def _plan(graph: object, state: ModelState) -> tuple[CachedModel, StepPlan] | None:
    """The plan of a graph that is cached; none where its settings can't be those of its trunk."""
    if not isinstance(graph, CachedModel):
        return None
    try:
        return graph, graph.plans.plan(state.overrides, ())
    except InvalidConfig:
        return None


def _regions(graph: CachedModel, state: ModelState) -> tuple[tuple[int, int], ...]:
    found = _plan(graph, state)
    return _bounds(None if found is None else found[1])


def _trials(
    states: Sequence[ModelState], plans: Sequence[tuple[CachedModel, StepPlan]]
) -> tuple[Trial, ...]:
    recordings = [recording for state in states for recording in list(state.recordings)]
    if not recordings or not plans:
        return ()
    graph, plan = plans[-1]
    if plan.settings.common.dry_run is None:
        return ()
    (region,) = plan.regions
    return trials(
        plan.settings,
        recordings,
        num_blocks=graph.compiled.trunk.num_blocks,
        num_skipped=region.stop - region.start,
    )


def graph_report(
    trunk: Trunk,
    *,
    num_distinct: int,
    regions: tuple[tuple[int, int], ...] = (),
    compile_seconds: float | None = None,
    is_linked: bool = False,
    is_loaded: bool = False,
) -> GraphReport:
    """The report of a trunk that was cut."""
    skipped = [trunk.costs.share_of_work(start, stop) for start, stop in regions]
    known = [share for share in skipped if share is not None]
    makers = [
        trunk.segments[i + 1].name
        for start, stop in regions
        for i in range(start, stop)
        if not all(stream.is_added_to[i] for stream in trunk.streams)
    ]
    return GraphReport(
        block_lists=trunk.block_lists,
        num_blocks=trunk.num_blocks,
        num_streams=sum(_is_carried(stream, trunk) for stream in trunk.streams),
        num_segments=len(trunk.segments),
        num_compiled=num_distinct,
        regions=regions,
        compile_seconds=compile_seconds,
        refusals=(),
        share_of_weights=trunk.costs.share_of_weights(0, trunk.num_blocks),
        share_of_work=trunk.costs.share_of_work(0, trunk.num_blocks),
        share_skipped=sum(known) if known else None,
        makers=tuple(makers),
        is_linked=is_linked,
        is_loaded=is_loaded,
        groups=trunk.groups.names,
    )


def _is_carried(stream: Stream, trunk: Trunk) -> bool:
    """False for what passes the blocks by, as it is."""
    return any(slot is not None and trunk.made_by[slot] > 0 for slot in stream.slots)


def refused(refusal: Uncacheable) -> GraphReport:
    """The report of a graph that isn't cached."""
    has_no_blocks = refusal.has_no_blocks
    return GraphReport((), 0, 0, 0, 0, (), None, (str(refusal),), has_no_blocks=has_no_blocks)
