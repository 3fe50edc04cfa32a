"""What must hold for every model that is cached, a function each. They run the zoo of this
repository, and `assert_cacheable`."""

import copy
import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dit_cachegraph.account.status import Standing
from dit_cachegraph.api import configure, reset, summary
from dit_cachegraph.exc import NotCachedWarning
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.report import GraphReport
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.targets import modules_in
from dit_cachegraph.testing.expect import NotCacheable, expect
from dit_cachegraph.testing.run import Inputs, again, call, redraw, relative_error

WARM_UP = 2
CLOSE, CLOSE_IN_HALF = 1e-4, 2e-2
MATTERS = 1e-2
MAX_ROUNDS = 8


def tolerance_of(model: nn.Module) -> float:
    """How far outputs may be apart that differ by the order of their sums."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    is_half = not dtypes.isdisjoint({torch.float16, torch.bfloat16})
    return CLOSE_IN_HALF if is_half else CLOSE


def compiled_for(model: nn.Module, *, fullgraph: bool) -> nn.Module:
    """Compiled without a warm-up and without reuse; blocks run as eager PyTorch runs them."""
    torch._dynamo.reset()
    options = {"inner_backend": "eager", "residual_diff_threshold": 0.0, "max_warmup_steps": 0}
    compiled = torch.compile(model, backend="cachedit", fullgraph=fullgraph, options=options)  # type: ignore[arg-type]
    return cast(nn.Module, compiled)


def assert_equals_eager(
    compiled: nn.Module, steps: Sequence[Inputs], eager: Sequence[Tensor], close: float = CLOSE
) -> None:
    """With the cache compiled in and nothing reused; also while calls are watched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCachedWarning)
        for _ in range(MAX_ROUNDS):
            for inputs, expected in zip(steps, eager, strict=False):
                error = relative_error(call(compiled, inputs), expected)
                expect(error < close, f"off by {error:.1e} from eager PyTorch with threshold 0")
            if not is_watched(compiled):
                break
    num_hits = summary(compiled).num_hits
    expect(num_hits == 0, f"{num_hits} steps were reused with threshold 0")


def is_watched(compiled: nn.Module) -> bool:
    """Whether the last call was watched, since the blocks have a graph each."""
    return any(status.standing is Standing.WATCHED for status in summary(compiled).statuses)


def cached_graph(compiled: nn.Module) -> GraphReport:
    """The report of the one graph that is cached."""
    report = summary(compiled)
    cached = [graph for graph in report.graphs if not graph.refusals]
    expect(bool(cached), "\n".join([*report.notes, *report.refusals]) or "nothing was compiled")
    expect(len(cached) == 1, f"{len(cached)} graphs are cached, and not one:\n{report}")
    return cached[0]


def blocks_found(compiled: nn.Module) -> list[nn.Module]:
    """The blocks of the cached graph in the order of their calls, one a call.

    Raises:
        NotCacheable: they are no modules.
    """
    (model,) = modules_in(compiled)
    graphs = REGISTRY.of_module(model).graphs.values()
    (cached,) = [graph for graph in graphs if isinstance(graph, CachedModel)]
    modules = dict(model.named_modules())
    names = [segment.name for segment in cached.compiled.trunk.segments[1:-1]]
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise NotCacheable(
            f"the blocks that were found ({unknown[0]}, ...) are no modules: name the lists that "
            'hold their weights, as in `trunk=["weights"]`'
        )
    return [modules[name] for name in names]


def blocks_called(model: nn.Module, trunk: Sequence[str], inputs: Inputs) -> list[nn.Module]:
    """The items of the lists named in `trunk` in the order of their calls, one a call; as they
    stand, where they only hold weights for functions."""
    blocks = [block for name in trunk for block in model.get_submodule(name).children()]
    called: list[nn.Module] = []
    hooks = [
        block.register_forward_pre_hook(lambda module, _: called.append(module)) for block in blocks
    ]
    call(model, inputs)
    for hook in hooks:
        hook.remove()
    missing = set(blocks) - set(called)
    expect(not called or not missing, f"{len(missing)} blocks were not called")
    return called or blocks


def assert_block_matters(model: nn.Module, block: nn.Module, inputs: Inputs, eager: Tensor) -> None:
    """Other weights in a block give another output: a model that draws nothing with its first
    weights would pass anything."""
    kept = copy.deepcopy(block.state_dict())
    redraw(block, seed=1)
    change = relative_error(call(model, inputs), eager)
    block.load_state_dict(kept)
    expect(
        change > MATTERS,
        f"another middle block changes the output by {change:.1e} only, so nothing that is wrong "
        "with the cache could be seen: give weights that are zero at first a random value",
    )
    expect(torch.equal(call(model, inputs), eager), "two calls with equal inputs differ")


def assert_replays(compiled: nn.Module, steps: Sequence[Inputs], close: float = CLOSE) -> None:
    """A hit on the inputs of the last computed step gives what computing them gave."""
    reset(compiled)
    configure(compiled, residual_diff_threshold=1.0, max_warmup_steps=WARM_UP)
    repeated = again(steps[1], steps[0])
    *_, computed, replayed = [call(compiled, inputs) for inputs in (*steps[:2], repeated)]
    last = summary(compiled).steps[-1]
    expect(last.hit, f"the second call of one step computed: {last.reason}")
    error = relative_error(replayed, computed)
    expect(error < close, f"a replay on the same inputs is off by {error:.1e}")


def assert_hits(compiled: nn.Module, steps: Sequence[Inputs]) -> None:
    """Every step is known as one of the same image: all after the warm-up are reused where the
    threshold allows it."""
    reasons = reasons_to_compute(compiled, steps, 1.0)
    sentence = (
        f"{len(reasons)} of {len(steps)} steps computed, and {WARM_UP} should, for 'warmup': "
        f"{reasons}"
    )
    num_begun = sum(step.step == 0 for step in summary(compiled).steps[-len(steps) :])
    if num_begun > 1:
        sentence += (
            f"; {num_begun} were taken for the first of an image: latents and timestep have to "
            "move on from step to step, and all else has to be the very same objects"
        )
    expect(reasons == ["warmup"] * WARM_UP, sentence)


def reasons_to_compute(compiled: nn.Module, steps: Sequence[Inputs], threshold: float) -> list[str]:
    """Why the computed steps of one image were."""
    reset(compiled)
    configure(compiled, residual_diff_threshold=threshold, max_warmup_steps=WARM_UP)
    for inputs in steps:
        call(compiled, inputs)
    return [step.reason for step in summary(compiled).steps[-len(steps) :] if not step.hit]


def assert_default_rule_holds(
    compiled: nn.Module, steps: Sequence[Inputs], eager: Sequence[Tensor], close: float = CLOSE
) -> None:
    """Error control over the whole trunk with forecasts: nothing reused gives what eager does."""
    reset(compiled)
    configure(compiled, preset="balanced", error_tolerance=0.0)
    for inputs, expected in zip(steps, eager, strict=False):
        error = relative_error(call(compiled, inputs), expected)
        expect(error < close, f"off by {error:.1e} from eager PyTorch with tolerance 0")


@torch.no_grad()
def assert_a_hit_skips_half(
    compiled: nn.Module, steps: Sequence[Inputs], blocks: Sequence[nn.Module], close: float = CLOSE
) -> None:
    """A hit gives the same, whatever becomes of the weights of the blocks that it skips; and these
    are half of the trunk at least. The weights are lost."""
    reset(compiled)
    configure(compiled, residual_diff_threshold=1.0, max_warmup_steps=WARM_UP)
    graph = cached_graph(compiled)
    first, stop = graph.region or (0, 0)
    num_skipped = stop - first
    expect(2 * num_skipped >= len(blocks), f"a hit skips {num_skipped} of {len(blocks)}: {graph}")
    *_, expected = [call(compiled, inputs) for inputs in (steps[0], steps[1], steps[2])]
    for block in set(blocks[-num_skipped:]) - set(blocks[:-num_skipped]):
        for parameter in block.parameters():
            parameter.data.fill_(torch.nan)  # A write that is counted would make the step compute.
    actual = call(compiled, again(steps[2], steps[1]))
    last = summary(compiled).steps[-1]
    expect(last.hit, f"the third step computed: {last.reason}")
    error = relative_error(actual, expected)
    expect(error < close, f"a hit ran what it should skip: {graph}")
