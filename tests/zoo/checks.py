"""What must hold for every entry of the zoo: the checks that `dit_cachegraph.testing` makes of any
model, and what needs an entry's own data."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.report import GraphReport
from dit_cachegraph.testing.checks import (
    assert_a_hit_skips_half,
    assert_block_matters,
    assert_default_rule_holds,
    assert_equals_eager,
    assert_hits,
    assert_replays,
    blocks_called,
    cached_graph,
    compiled_for,
    reasons_to_compute,
)
from dit_cachegraph.testing.run import call
from zoo.entry import Entry, Inputs

NUM_STEPS = 10
# A random model's residuals move about as fast as its latents, so the threshold is wide.
THRESHOLD = 0.2


@dataclass(frozen=True)
class Result:
    """What was found of an entry: the report of its cached graph, or what it was refused for; and
    into how many graphs diffusers' own code broke it."""

    entry: Entry
    graph: GraphReport | None
    num_graphs: int
    reason: str = ""


def check(entry: Entry) -> Result:
    """Build, compile and run one entry, and check all that must hold for it."""
    with entry.keep_whole():
        return _check(entry)


def _check(entry: Entry) -> Result:
    model = entry.build()
    steps = list(entry.steps(model, levels_of(entry)))
    eager = [call(model, inputs) for inputs in steps[:3]]
    blocks = blocks_called(model, entry.trunk, steps[0])
    assert_block_matters(model, blocks[len(blocks) // 2], steps[0], eager[0])
    compiled = compiled_entry(entry, model)
    assert_warns_once_if_refused(entry, compiled, steps[0])
    assert_equals_eager(compiled, steps, eager)
    num_graphs = assert_breaks_are_as_said(entry)
    if entry.refusal is not None:
        reason = assert_refused(compiled, entry.refusal)
        return Result(entry, None, num_graphs, reason + where_it_breaks(entry, model, steps[0]))
    graph = cached_graph(compiled)
    assert_replays(compiled, steps)
    assert_hits(compiled, steps)
    assert_real_diffs_hit(compiled, steps)
    assert_default_rule_holds(compiled, steps, eager)
    assert_default_rule_hits(compiled, steps)
    dc.check(compiled)
    assert_a_hit_skips_half(compiled, steps, blocks)
    assert_no_growth(entry, graph)
    return Result(entry, graph, num_graphs)


def assert_warns_once_if_refused(entry: Entry, compiled: nn.Module, inputs: Inputs) -> None:
    """However many graphs its first call makes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", dc.NotCachedWarning)
        call(compiled, inputs)
    told = [str(w.message) for w in caught if issubclass(w.category, dc.NotCachedWarning)]
    assert len(told) == (entry.refusal is not None), f"{len(told)} warnings: {told}"


def levels_of(entry: Entry, num_steps: int = NUM_STEPS) -> list[float]:
    return [0.95 - entry.stride * i for i in range(num_steps)]


def compiled_entry(entry: Entry, model: nn.Module) -> nn.Module:
    """With full graphs where diffusers has them: there a break is an error."""
    counters.clear()
    return compiled_for(model, fullgraph=not entry.breaks)


def assert_breaks_are_as_said(entry: Entry) -> int:
    """The number of graphs."""
    num_graphs = counters["stats"]["unique_graphs"]
    assert (num_graphs > 1) == entry.breaks, f"{num_graphs} graphs: {dict(counters['graph_break'])}"
    return num_graphs


def assert_refused(compiled: nn.Module, sentence: str) -> str:
    """The first refusal that says so."""
    report = dc.summary(compiled)
    assert all(graph.refusals for graph in report.graphs), f"cached after all:\n{report}"
    assert not report.is_cached, f"called cached:\n{report}"
    matching = [refusal for refusal in report.refusals if sentence in refusal]
    assert matching, f"no refusal says {sentence!r}:\n{report}"
    return matching[0]


@torch.no_grad()
def where_it_breaks(entry: Entry, model: nn.Module, inputs: Inputs) -> str:
    """What `explain` says of it before anybody compiles."""
    if not entry.breaks:
        return ""
    found = dc.explain(model, **inputs).first_break
    assert found is not None, f"{entry} doesn't break"
    return f"; it breaks {found}"


def assert_real_diffs_hit(compiled: nn.Module, steps: list[Inputs]) -> None:
    reasons = reasons_to_compute(compiled, steps, THRESHOLD)
    assert len(reasons) <= NUM_STEPS - 3, f"hardly any hits: {reasons}"


def assert_default_rule_hits(compiled: nn.Module, steps: list[Inputs]) -> None:
    """A wide tolerance reuses some steps."""
    dc.reset(compiled)
    dc.configure(compiled, preset="balanced", error_tolerance=0.5)
    outputs: list[Tensor] = [call(compiled, inputs) for inputs in steps]
    last = dc.summary(compiled).steps[-len(steps) :]
    assert any(step.hit for step in last), f"no hits: {[step.reason for step in last]}"
    assert all(torch.isfinite(output).all() for output in outputs)


def assert_no_growth(entry: Entry, graph: GraphReport) -> None:
    """A model twice as deep has no more distinct segments."""
    if graph.is_linked:
        # Dynamo compiles a block anew where what the first is given lies otherwise in memory.
        graph = found_at_depth(entry, 2)
    times_deeper = 4 if graph.is_linked else 2
    found = found_at_depth(entry, times_deeper)
    assert found.num_blocks == 2 * graph.num_blocks, f"{found}"
    assert found.num_compiled <= graph.num_compiled, (
        f"{graph.num_compiled} distinct segments, {found.num_compiled} twice as deep"
    )


def found_at_depth(entry: Entry, times_deeper: int) -> GraphReport:
    deeper = entry.build(times_deeper=times_deeper)
    inputs = next(entry.steps(deeper, levels_of(entry)))
    eager = call(deeper, inputs)  # Some make tables at their first call that Dynamo can't trace.
    compiled = compiled_entry(entry, deeper)
    assert_equals_eager(compiled, [inputs], [eager])
    return cached_graph(compiled)
