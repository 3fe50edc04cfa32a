"""`explain(module, ...)`: what would be found, cut and refused, before anything is compiled."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import Layers
from dit_cachegraph.make_report import graph_report, refused
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.own_code import code_of_its_own
from dit_cachegraph.plan import Uncacheable
from dit_cachegraph.planning.step_plan import make_plan
from dit_cachegraph.report import GraphReport
from dit_cachegraph.targets import Exported, as_module, modules_in, uncached_forward

if TYPE_CHECKING:
    from dit_cachegraph.graph.find.first_break import GraphBreak


@dataclass(frozen=True, slots=True)
class Explanation:
    """`graphs`: one report a Dynamo graph, in order of the calls; `code[i]`: the rewritten graph,
    segment by segment, as FX text (empty where the graph can't be cut); `first_break`: where and
    why the call first breaks its graph, and what removes that, if it does."""

    graphs: tuple[GraphReport, ...]
    code: tuple[str, ...] = field(repr=False)
    first_break: "GraphBreak | None" = None

    def __str__(self) -> str:
        header = f"{len(self.graphs)} graph" + ("s" if len(self.graphs) != 1 else "")
        if self.first_break is not None:
            header += f": it breaks {self.first_break}"
        return "\n".join([header, *dict.fromkeys(str(graph) for graph in self.graphs)])


def explain(target: object, *args: object, **kwargs: object) -> Explanation:
    """Trace one call of a transformer and say what the backend would make of it.

    `target` is a module, called with `args` and `kwargs`; or a pipeline, called with them up to the
    first call of its transformer. Nothing is compiled and the model isn't changed.

    Raises:
        InvalidConfig: the model was exported, and so has no code to trace.
        UnknownTarget: `target` holds no transformer.
    """
    module = modules_in(target)[0]
    if isinstance(module, Exported):
        raise InvalidConfig(
            f"this {type(module).__name__} was exported, and has no code to trace: `summary` says "
            "after a call what was found in it"
        )
    if as_module(target) is not None:
        return _explain_call(module, args, kwargs)
    with _left_as_it_was(module):
        return _explain_call(module, *_first_call(target, module, args, kwargs))


def _explain_call(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> Explanation:
    overrides = REGISTRY.of_module(module).overrides if REGISTRY.has_module(module) else ()
    found: list[tuple[GraphReport, str]] = []

    def record(
        gm: fx.GraphModule, example_inputs: Sequence[torch.Tensor], **_: object
    ) -> Callable[..., object]:
        found.append(_explain_graph(gm, overrides))
        return gm.forward

    from dit_cachegraph.graph.find.first_break import first_break  # noqa: PLC0415

    uncached = uncached_forward(module)

    def call() -> Callable[[], object]:
        forward = code_of_its_own(_forward)
        return partial(forward, module, args, kwargs, uncached)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward = torch.compile(code_of_its_own(_forward), backend=record)
        forward(module, args, kwargs, uncached)
        broke = first_break(call) if len(found) > 1 else None
    return Explanation(tuple(r for r, _ in found), tuple(code for _, code in found), broke)


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """A pipeline that is stopped in the middle of its call doesn't take back what it did to the
    model for that call: with perturbed attention it has set other processors."""
    before = [(held, dict(held)) for m in module.modules() for held in (vars(m), m._modules)]
    try:
        yield
    finally:
        for held, was in before:
            if held.keys() != was.keys() or any(held[name] is not was[name] for name in was):
                held.clear()
                held.update(was)


def _forward(
    self: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    uncached: Callable[..., object] | None,
) -> object:
    return self.forward(*args, **kwargs) if uncached is None else uncached(*args, **kwargs)


def _explain_graph(gm: fx.GraphModule, overrides: Layers) -> tuple[GraphReport, str]:
    # What traces imports Dynamo, and who calls what was exported does without it.
    from dit_cachegraph.backend import cut_graph  # noqa: PLC0415

    cut = cut_graph(gm)
    if isinstance(cut, Uncacheable):
        return refused(cut), ""
    plan = make_plan(resolve(*map(dict, overrides)), cut.trunk, cut.roles)
    regions = tuple((region.start, region.stop) for region in plan.regions)
    report = graph_report(cut.trunk, num_distinct=len(cut.graphs), regions=regions)
    return report, cut.to_text()


class _FirstCall(Exception):  # noqa: N818  # not an error: it ends the pipeline's run
    def __init__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        super().__init__()
        self.args_seen, self.kwargs_seen = args, dict(kwargs)


def _first_call(
    pipeline: object, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments of the first call that the pipeline makes to its transformer."""

    def stop(_: nn.Module, seen: tuple[object, ...], named: dict[str, object]) -> None:
        raise _FirstCall(seen, named)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        assert callable(pipeline)
        pipeline(*args, **kwargs)
    except _FirstCall as call:
        return call.args_seen, call.kwargs_seen
    finally:
        handle.remove()
    raise ValueError("the pipeline returned without calling its transformer")
