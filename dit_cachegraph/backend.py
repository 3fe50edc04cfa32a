"""`torch.compile(transformer, backend="cachedit")`: the stages, one a line."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from dit_cachegraph.call_stack import model_being_called
from dit_cachegraph.config import split_options
from dit_cachegraph.cuda_graphs.cuda_capturer import cuda_capturer
from dit_cachegraph.exc import CannotCut, InvalidConfig, NoBlocks
from dit_cachegraph.graph.cut.check_layouts import check_layouts
from dit_cachegraph.graph.cut.compile_segments import (
    InnerCompiler,
    compile_segments,
    inner_compiler,
)
from dit_cachegraph.graph.cut.copy_streams import copy_streams
from dit_cachegraph.graph.cut.freeze_weights import freeze_weights
from dit_cachegraph.graph.cut.link_graph import link_graph
from dit_cachegraph.graph.cut.segment_graph import Cut, segment_graph
from dit_cachegraph.graph.find.check_fragment import check_fragment
from dit_cachegraph.graph.find.find_blocks import find_blocks
from dit_cachegraph.graph.find.find_link import find_link
from dit_cachegraph.graph.fx_utils import weight_arguments
from dit_cachegraph.graph.prepare.drop_grad_modes import drop_grad_modes
from dit_cachegraph.graph.prepare.inline_regions import inline_regions
from dit_cachegraph.graph.prepare.move_numbers import move_numbers
from dit_cachegraph.graph.prepare.plain_views import plain_views
from dit_cachegraph.graph.prepare.plain_writes import plain_writes
from dit_cachegraph.graph.prepare.unmark_given import unmark_given
from dit_cachegraph.graph.understand.assign_nodes import Assignment, assign_nodes
from dit_cachegraph.graph.understand.check_effects import check_effects
from dit_cachegraph.graph.understand.check_share import check_share
from dit_cachegraph.graph.understand.find_collectives import find_collectives, waits_for_ranks
from dit_cachegraph.graph.understand.find_fragment_roles import find_fragment_roles
from dit_cachegraph.graph.understand.match_pattern import Pattern, match_pattern
from dit_cachegraph.hooks import hooks_on
from dit_cachegraph.links.called import CalledLink
from dit_cachegraph.links.link import Link
from dit_cachegraph.plan import Uncacheable
from dit_cachegraph.ranks.roll import say_whole
from dit_cachegraph.runtime.uncached import UncachedModel
from dit_cachegraph.savable import SavableModel

log = logging.getLogger("dit_cachegraph")

GRAD_MODE = (
    "it was compiled with gradients on, and the cache is for inference: call the model under "
    "`torch.no_grad()` or `torch.inference_mode()`"
)
NO_RUNS = (
    "cuda_graphs replays runs of blocks, and these are compiled one by one: compile the whole "
    "model, or leave the option out"
)


def cachedit(
    gm: fx.GraphModule,
    example_inputs: Sequence[torch.Tensor],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
    **_ignored: object,
) -> Callable[..., object]:
    """Compile one Dynamo graph so that a run of its blocks sits behind a guarded cache branch.

    `options` holds every setting of the cache, and those of `CompileOptions` for the compilation
    (`torch.compile` takes `mode=` or `options=`, not both). In grad mode, and where the graph can't
    be cut soundly, it is compiled as it is, with the reason in the report.
    """
    compile_options, settings = split_options(options or {})
    compiler = inner_compiler(compile_options, mode)
    if torch.is_grad_enabled():
        return _run_uncached(gm, example_inputs, compiler, Uncacheable(GRAD_MODE))
    block = find_link(gm)
    if block is not None:
        if compile_options.cuda_graphs:
            raise InvalidConfig(NO_RUNS)
        return _link(gm, example_inputs, compiler, block, settings)
    cut = cut_graph(gm, compile_options.group_name)
    if isinstance(cut, Uncacheable):
        return _run_uncached(gm, example_inputs, compiler, cut)
    capturer = cuda_capturer(cut.device) if compile_options.cuda_graphs else None
    log.info("compiling %d segments of %d blocks", len(cut.graphs), cut.trunk.num_blocks)
    compiled = compile_segments(cut, compiler)
    log.info("compiled in %.1f s", compiled.compile_seconds)
    are_frozen = compile_options.frozen_weights
    if are_frozen:
        compiled = replace(compiled, own_weights=freeze_weights(gm, example_inputs))
    called = _class_being_called()
    return SavableModel(
        compiled, settings, called, are_weights_frozen=are_frozen, capturer=capturer
    )


def cut_graph(gm: fx.GraphModule, process_group: str | None = None) -> Cut | Uncacheable:
    """Find the blocks of a graph and cut it along them: all stages but the compilation.
    `process_group` names the ranks that share a sample, where the caller says it."""
    try:
        _prepare(gm)
        assignment, pattern = _understand(gm)
        check_layouts(assignment, pattern.streams)
        if copy_streams(gm, assignment, pattern.streams):
            assignment, pattern = _understand(gm)
        groups = find_collectives(assignment, process_group)
        return segment_graph(gm, assignment, pattern, groups)
    except NoBlocks as refusal:
        model = model_being_called()
        hooks = None if model is None else hooks_on(model)
        if hooks is not None and not hooks.are_around_blocks:
            return Uncacheable(hooks.when_compiled(), has_no_blocks=True)
        return Uncacheable(str(refusal), has_no_blocks=True, tells_break=refusal.tells_break)
    except CannotCut as refusal:
        return Uncacheable(str(refusal))


def _link(
    gm: fx.GraphModule,
    example_inputs: Sequence[torch.Tensor],
    compiler: InnerCompiler,
    block: nn.Module,
    settings: Mapping[str, object],
) -> Callable[..., object]:
    """A block that was compiled alone: its calls are joined into a trunk at run time."""
    start = time.perf_counter()
    try:
        _prepare(gm)
        graph = link_graph(gm, block)
    except CannotCut as refusal:
        return _run_uncached(gm, example_inputs, compiler, Uncacheable(str(refusal)))
    function = compiler.whole(gm, example_inputs)
    return CalledLink(Link(function, graph, settings, time.perf_counter() - start))


def _prepare(gm: fx.GraphModule) -> None:
    unmark_given(gm)
    inline_regions(gm)
    drop_grad_modes(gm)
    move_numbers(gm)
    plain_writes(gm)
    plain_views(gm)


def _understand(gm: fx.GraphModule) -> tuple[Assignment, Pattern]:
    sequences = find_blocks(gm)
    check_fragment(gm)
    assignment = assign_nodes(gm, sequences)
    check_share(gm, sequences, assignment)
    check_effects(assignment)
    return assignment, match_pattern(sequences, assignment)


def _run_uncached(
    gm: fx.GraphModule,
    example_inputs: Sequence[torch.Tensor],
    compiler: InnerCompiler,
    refusal: Uncacheable,
) -> UncachedModel:
    if not refusal.has_no_blocks and waits_for_ranks(gm):
        say_whole(refusal.reason)
    weights, roles = weight_arguments(gm), find_fragment_roles(gm)
    function = compiler.whole(gm, example_inputs)
    return UncachedModel(function, refusal, weights, roles, _class_being_called())


def _class_being_called() -> type[nn.Module] | None:
    """All fragments of a call share it, and so do the models that share what Dynamo compiled."""
    model = model_being_called()
    return None if model is None else type(model)
