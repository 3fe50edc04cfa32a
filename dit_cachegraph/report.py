"""What was compiled and what was decided: as an object, as text, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dit_cachegraph.account.status import Status
from dit_cachegraph.dry_run import Trial
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.few_steps import why_nothing_gained
from dit_cachegraph.freeze import frozen_config
from dit_cachegraph.json_values import jsonable
from dit_cachegraph.plan import BlockListReport
from dit_cachegraph.step_log import StepReport

NUM_STEPS_SHOWN = 60


_LINKED = (
    "  joined at run time, of blocks compiled one by one: the code between them runs at every "
    "step, at the cost of a call of Python each; `torch.compile` of the whole model saves more, "
    "where it has no breaks"
)


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One Dynamo graph: what was found, cut and compiled, or why it isn't cached; then it stands
    for the `num_graphs` that are refused for that reason, as where the graph `has_no_blocks`.

    `share_of_weights` and `share_of_work` are those of the blocks in what the graph holds and does,
    `share_skipped` is that of the work of the regions; None where there are no weights, or no
    products to count. `makers` are the blocks of the regions that make a stream anew, so that what
    is replayed of it is its value. `is_linked`: its blocks were compiled one by one;
    `is_loaded`: another process compiled them. `groups` are the process groups, by name, whose
    ranks share each sample, and decide as one. `cuda_graphs` says of graphs that are replayed how
    many there are, and what runs without and why; empty where they weren't asked for.
    """

    block_lists: tuple[BlockListReport, ...]
    num_blocks: int
    num_streams: int
    num_segments: int
    num_compiled: int
    regions: tuple[tuple[int, int], ...]
    compile_seconds: float | None
    refusals: tuple[str, ...]
    share_of_weights: float | None = None
    share_of_work: float | None = None
    share_skipped: float | None = None
    makers: tuple[str, ...] = ()
    is_loaded: bool = False
    num_graphs: int = 1
    has_no_blocks: bool = False
    is_linked: bool = False
    groups: tuple[str, ...] = ()
    cuda_graphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.refusals:
            said = "\n".join(self.refusals)
            return said if self.num_graphs == 1 else f"{said} ({self.num_graphs} graphs)"
        lists = " + ".join(f"{b.name} x {b.num_blocks}" for b in self.block_lists)
        lines = [f"{lists}: {self.num_blocks} blocks"]
        lines += [f"  {b.name}: {b.pattern}" for b in self.block_lists]
        compiled = f"{self.num_segments} segments, {self.num_compiled} distinct"
        if self.compile_seconds is not None:
            how = "loaded" if self.is_loaded else "compiled"
            compiled += f", {how} in {self.compile_seconds:.1f} s"
        lines.append(f"  {compiled}")
        if len(self.regions) == 1:
            ((start, stop),) = self.regions
            lines.append(
                f"  Fn={start}, Bn={self.num_blocks - stop}: a hit skips {stop - start} blocks"
            )
        elif self.regions:
            num_blocks = sum(stop - start for start, stop in self.regions)
            lines.append(f"  {len(self.regions)} regions, of {num_blocks} blocks in all")
        if self.groups:
            named = " and ".join(map(repr, self.groups))
            lines.append(f"  the ranks of process group {named} decide as one")
        lines += filter(None, [self._shares(), self._replayed()])
        lines += [f"  {said}" for said in self.cuda_graphs]
        if self.is_linked:
            lines.append(_LINKED)
        return "\n".join(lines)

    def _shares(self) -> str:
        """`the blocks are 93% of the model's weights; a hit skips 88% of its work`."""
        parts, work = [], "the work of its blocks" if self.is_linked else "its work"
        if self.share_of_weights is not None:
            parts.append(f"the blocks are {self.share_of_weights:.0%} of the model's weights")
        if self.share_skipped is not None and self.regions:
            at_most = "a hit skips" if len(self.regions) == 1 else "hits skip up to"
            parts.append(f"{at_most} {self.share_skipped:.0%} of {work}")
        elif self.share_of_work is not None:
            parts.append(f"the blocks do {self.share_of_work:.0%} of {work}")
        return "  " + "; ".join(parts) if parts else ""

    def _replayed(self) -> str:
        """`up.0 and 3 more add nothing to what they are given: ...`."""
        if not self.makers:
            return ""
        more = f" and {len(self.makers) - 1} more" if len(self.makers) > 1 else ""
        return f"  no sum leads past {self.makers[0]}{more}: a hit replays the value, no residual"

    @property
    def region(self) -> tuple[int, int] | None:
        """The region, where there is one."""
        return self.regions[0] if len(self.regions) == 1 else None


@dataclass(frozen=True, slots=True)
class Report:
    """The report of one model. Prints as text; `to_dict()` is JSON.

    `steps` are the last thousand; `num_hits`, `num_computed` and the blocks count all of them, and
    `num_outside` the calls that weren't cached. `num_compiles` are the graphs that it was compiled
    to. Of images under way, each pass of guidance by itself, `num_evicted` lost their state to
    `max_state_bytes` and `num_expired` to `max_idle_seconds`. `state_nbytes` is what is held for
    later steps, each storage once; `settings` are the rule and the predictor of each cached graph,
    by name and option, and `last_settings` and `last_regions` are those of the last step, None and
    empty before any; `trials` are the thresholds of a dry run.
    """

    graphs: tuple[GraphReport, ...]
    steps: tuple[StepReport, ...]
    num_hits: int
    num_computed: int
    num_blocks: int
    num_blocks_run: int
    state_nbytes: int
    num_branches: int
    settings: tuple[Mapping[str, object], ...] = ()
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()
    statuses: tuple[Status, ...] = ()
    num_outside: int = 0
    num_evicted: int = 0
    num_expired: int = 0
    num_compiles: int = 0
    last_settings: Mapping[str, object] | None = None
    last_regions: tuple[tuple[int, int], ...] = ()

    @property
    def is_cached(self) -> bool:
        """Whether the last call of each model went through the cache."""
        return bool(self.statuses) and all(status.is_cached for status in self.statuses)

    @property
    def standing(self) -> str:
        """Which of these holds, a line a model: cached; compiled and not cached; not called yet;
        called, but Dynamo never asked for it to be compiled. With cause and remedy."""
        several = len({status.sentence for status in self.statuses}) > 1
        told = (f"{s.model}: {s.sentence}" if several else s.sentence for s in self.statuses)
        return "\n".join(dict.fromkeys(told))

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why graphs of it run uncached, in their order."""
        return tuple(refusal for graph in self.graphs for refusal in graph.refusals)

    def as_config(self) -> dict[str, object]:
        """The decisions of the last image as a fixed schedule, for `configure(model, **config)`:
        JSON, the same decisions whatever the batch or the machine, and no copy to wait for.

        Raises:
            InvalidConfig: nothing is cached, no image has begun, each step decided on several
                regions or its steps skipped different ones, or the report is of several models.
        """
        if len(self.statuses) > 1:
            raise InvalidConfig(
                f"{len(self.statuses)} models decide for themselves here: freeze each alone, as by "
                "summary(pipe.transformer_2).as_config()"
            )
        if all(graph.refusals for graph in self.graphs):
            raise InvalidConfig("nothing is cached here, so there are no decisions to freeze")
        if self.last_settings is None:
            raise InvalidConfig("no image has begun yet: draw one before its decisions are frozen")
        return frozen_config(self.last_settings, self.last_regions, self.steps)

    def to_dict(self) -> dict[str, object]:
        """All of it by name, as JSON takes it."""
        told = {name: jsonable(value) for name, value in asdict(self).items()}
        told["statuses"] = [{**asdict(s), "standing": s.standing.value} for s in self.statuses]
        return {"is_cached": self.is_cached, **told}

    def __str__(self) -> str:
        lines = list(filter(None, [self.standing]))
        lines += [note for note in self.notes if note not in self.standing]
        # Their sentence would blame a graph of a call whose blocks are cached, or repeat a note.
        unsaid = [g for g in self.graphs if g.has_no_blocks and (self.is_cached or self.notes)]
        told = map(str, [graph for graph in self.graphs if graph not in unsaid])
        lines += [said for said in told if said != self.standing]
        if num_unsaid := sum(graph.num_graphs for graph in unsaid):
            graphs = "1 more graph" if num_unsaid == 1 else f"{num_unsaid} more graphs"
            lines.append(f"  {graphs} of its calls without blocks")
        num_steps = self.num_hits + self.num_computed
        if num_steps:
            lines.append(
                f"{num_steps} steps: {self.num_hits} reused, {self.num_computed} computed, "
                f"{self.num_blocks_run / self.num_blocks:.0%} of the block work run; "
                f"{self.state_nbytes / 2**20:.2f} MiB held for {self.num_branches} branches"
            )
        lines += filter(None, [why_nothing_gained(self.steps)])
        lines += map(str, self.trials)
        lines += [_step_line(step) for step in self.steps[-NUM_STEPS_SHOWN:]]
        if len(self.steps) > NUM_STEPS_SHOWN:
            lines.append(f"  (the last {NUM_STEPS_SHOWN} of {num_steps} steps; all kept in .steps)")
        return "\n".join(lines)


def _step_line(step: StepReport) -> str:
    timestep = "" if step.timestep is None else f" t={step.timestep:<8.4g}"
    mark = "reuse  " if step.hit else "compute"
    sample = "" if step.sample is None else f" (sample {step.sample})"
    return f"  {step.request:>6} step {step.step:>3}{timestep} {mark} {step.reason}{sample}"
