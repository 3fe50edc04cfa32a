"""What must hold for every entry of the zoo. Each check says what it found where it fails."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.report import GraphReport
from models.entry import Entry, Inputs
from running import relative_error
from tiny_models import finish

NUM_STEPS = 10
WARM_UP = 2
CLOSE = 1e-4
MATTERS = 1e-2
# A random model's residuals move about as fast as its latents, so the threshold is wide.
THRESHOLD = 0.2


@dataclass(frozen=True)
class Result:
    """What was found of an entry: the report of its cached graph, or what it was refused for."""

    entry: Entry
    graph: GraphReport | None
    reason: str = ""


def check(entry: Entry) -> Result:
    """Build, compile and run one entry, and check all that must hold for it."""
    model = entry.build()
    steps = list(entry.steps(model, levels_of(entry)))
    eager = [call(model, inputs) for inputs in steps[:3]]
    blocks = blocks_in_order(entry, model, steps[0])
    assert_region_matters(model, blocks[len(blocks) // 2], steps[0], eager[0])
    compiled = compiled_for(entry, model)
    assert_equals_eager(compiled, steps, eager)
    assert_breaks_are_as_said(entry)
    if entry.refusal is not None:
        reason = assert_refused(compiled, entry.refusal)
        return Result(entry, None, reason + where_it_breaks(entry, model, steps[0]))
    graph = cached_graph(compiled)
    assert_replays(compiled, steps)
    assert_hits(compiled, steps)
    assert_default_rule_holds(compiled, steps, eager)
    assert_a_hit_skips_half(compiled, steps, blocks, graph)
    assert_no_growth(entry, graph)
    return Result(entry, graph)


def levels_of(entry: Entry, num_steps: int = NUM_STEPS) -> list[float]:
    return [0.95 - entry.stride * i for i in range(num_steps)]


@torch.no_grad()
def call(model: nn.Module, inputs: Inputs) -> Tensor:
    """All that the model returns, in one flat tensor."""
    return torch.cat([tensor.flatten().float() for tensor in tensors_in(model(**inputs))])


def tensors_in(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    assert isinstance(items, Iterable), f"no tensor: {value!r}"
    return chain.from_iterable(tensors_in(item) for item in items if item is not None)


def compiled_for(entry: Entry, model: nn.Module) -> nn.Module:
    """Compiled without a warm-up and without reuse, with full graphs where diffusers has them."""
    torch._dynamo.reset()
    counters.clear()
    options = {"inner_backend": "eager", "residual_diff_threshold": 0.0, "max_warmup_steps": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dc.NotCachedWarning)
        return torch.compile(model, backend="cachedit", fullgraph=not entry.breaks, options=options)


def blocks_in_order(entry: Entry, model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The blocks of the trunk in the order in which the model calls them, one a call."""
    blocks = [block for name in entry.trunk for block in model.get_submodule(name).children()]
    if not entry.calls_modules:
        return blocks
    called: list[nn.Module] = []
    hooks = [
        block.register_forward_pre_hook(lambda module, _: called.append(module)) for block in blocks
    ]
    call(model, inputs)
    for hook in hooks:
        hook.remove()
    missing = set(blocks) - set(called)
    assert not missing, f"{len(missing)} blocks were not called"
    return called


def assert_region_matters(model: nn.Module, block: nn.Module, inputs: Inputs, eager: Tensor):
    """Other weights in a middle block give another output: models that draw nothing at first would
    pass anything."""
    kept = {name: value.clone() for name, value in block.state_dict().items()}
    finish(block, seed=1)
    change = relative_error(call(model, inputs), eager)
    block.load_state_dict(kept)
    assert change > MATTERS, f"another middle block changes the output by {change:.1e} only"
    assert torch.equal(call(model, inputs), eager)


def assert_equals_eager(compiled: nn.Module, steps: list[Inputs], eager: list[Tensor]) -> None:
    """With the cache compiled in and nothing reused."""
    for inputs, expected in zip(steps, eager, strict=False):
        error = relative_error(call(compiled, inputs), expected)
        assert error < CLOSE, f"off by {error:.1e} with threshold 0"
    assert dc.summary(compiled).num_hits == 0


def assert_breaks_are_as_said(entry: Entry) -> None:
    num_graphs = counters["stats"]["unique_graphs"]
    assert (num_graphs > 1) == entry.breaks, f"{num_graphs} graphs: {dict(counters['graph_break'])}"


def assert_refused(compiled: nn.Module, sentence: str) -> str:
    """The first refusal that says so."""
    report = dc.summary(compiled)
    assert all(graph.refusals for graph in report.graphs), f"cached after all:\n{report}"
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


def cached_graph(compiled: nn.Module) -> GraphReport:
    """The report of the one graph that is cached."""
    report = dc.summary(compiled)
    cached = [graph for graph in report.graphs if not graph.refusals]
    assert len(cached) == 1, f"{len(cached)} graphs are cached:\n{report}"
    return cached[0]


def assert_replays(compiled: nn.Module, steps: list[Inputs]) -> None:
    """A hit on the inputs of the last computed step gives what computing them gave."""
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=1.0, max_warmup_steps=WARM_UP)
    *_, computed, replayed = [call(compiled, inputs) for inputs in (steps[0], steps[1], steps[1])]
    last = dc.summary(compiled).steps[-1]
    assert last.hit, f"the second call of one step computed: {last.reason}"
    error = relative_error(replayed, computed)
    assert error < CLOSE, f"a replay on the same inputs is off by {error:.1e}"


def assert_hits(compiled: nn.Module, steps: list[Inputs]) -> None:
    """Every step after the warm-up is one of the same image; real diffs reuse some of them."""
    assert _reasons_to_compute(compiled, steps, 1.0) == ["warmup"] * WARM_UP
    reasons = _reasons_to_compute(compiled, steps, THRESHOLD)
    assert len(reasons) <= NUM_STEPS - 3, f"hardly any hits: {reasons}"


def assert_default_rule_holds(
    compiled: nn.Module, steps: list[Inputs], eager: list[Tensor]
) -> None:
    """Error control over the whole trunk with forecasts: nothing reused gives what eager does, and
    a wide tolerance reuses some steps."""
    dc.reset(compiled)
    dc.configure(compiled, preset="balanced", error_tolerance=0.0)
    for inputs, expected in zip(steps, eager, strict=False):
        error = relative_error(call(compiled, inputs), expected)
        assert error < CLOSE, f"off by {error:.1e} with tolerance 0"
    dc.reset(compiled)
    dc.configure(compiled, error_tolerance=0.5)
    outputs = [call(compiled, inputs) for inputs in steps]
    last = dc.summary(compiled).steps[-len(steps) :]
    assert any(step.hit for step in last), f"no hits: {[step.reason for step in last]}"
    assert all(output.isfinite().all() for output in outputs)


def _reasons_to_compute(compiled: nn.Module, steps: list[Inputs], threshold: float) -> list[str]:
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=threshold, max_warmup_steps=WARM_UP)
    for inputs in steps:
        call(compiled, inputs)
    return [step.reason for step in dc.summary(compiled).steps[-len(steps) :] if not step.hit]


@torch.no_grad()
def assert_a_hit_skips_half(
    compiled: nn.Module, steps: list[Inputs], blocks: list[nn.Module], graph: GraphReport
) -> None:
    """A hit gives the same, whatever becomes of the weights of the blocks that it skips; and these
    are half of the trunk at least."""
    assert graph.region is not None
    num_skipped = graph.region[1] - graph.region[0]
    assert 2 * num_skipped >= len(blocks), f"skips {num_skipped} of {len(blocks)}: {graph}"
    dc.reset(compiled)
    dc.configure(compiled, residual_diff_threshold=1.0, max_warmup_steps=WARM_UP)
    *_, expected = [call(compiled, inputs) for inputs in (steps[0], steps[1], steps[2])]
    for block in set(blocks[-num_skipped:]) - set(blocks[:-num_skipped]):
        for parameter in block.parameters():
            parameter.fill_(torch.nan)
    actual = call(compiled, steps[2])
    last = dc.summary(compiled).steps[-1]
    assert last.hit, f"computed: {last.reason}"
    assert relative_error(actual, expected) < CLOSE, f"a hit ran what it should skip: {graph}"


def assert_no_growth(entry: Entry, graph: GraphReport) -> None:
    """A model twice as deep has no more distinct segments."""
    deeper = entry.build(times_deeper=2)
    inputs = next(entry.steps(deeper, levels_of(entry)))
    call(deeper, inputs)  # Some make tables at their first call that Dynamo can't trace.
    compiled = compiled_for(entry, deeper)
    call(compiled, inputs)
    found = cached_graph(compiled)
    assert found.num_blocks == 2 * graph.num_blocks, f"{found}"
    assert found.num_compiled <= graph.num_compiled, (
        f"{graph.num_compiled} distinct segments, {found.num_compiled} twice as deep"
    )
