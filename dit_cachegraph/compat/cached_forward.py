"""The forward that `enable_cache` sets on a transformer: the one that was there, compiled for the
cache. Its segments run as they are, until somebody asks to compile the transformer.

    transformer(...)                   our forward -> torch.compile(forward, "cachedit"), eager
    torch.compile(transformer)(...)    Dynamo meets our forward, which says so and is not traced
                                       -> torch.compile(forward, "cachedit"), with Inductor

So a `torch.compile` around it compiles nothing of its own, and the blocks are compiled once.

Where a break keeps them from the cache, the next call is traced as one graph: Dynamo then traces
sizes that depend on data, for which it would break. What can't be traced so runs as before.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.exc import (
    FailOnRecompileLimitHit,
    TorchRuntimeError,
    Unsupported,
    UserError,
)

from dit_cachegraph.call_log import CallLog, Tracing
from dit_cachegraph.compat.block_adapter import Hint, check_hints
from dit_cachegraph.layers import Layers, add_layer
from dit_cachegraph.make_report import report_of
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.own_code import code_of_its_own
from dit_cachegraph.targets import Forward, ForwardInPlace

log = logging.getLogger("dit_cachegraph")

NO_FULLGRAPH = (
    "the cache of enable_cache compiles the transformer itself, so it can't be part of another "
    "graph: leave fullgraph=True out, or, in place of enable_cache, call "
    'torch.compile(transformer, backend="cachedit", fullgraph=True)'
)


# Without Inductor a further kind of call (a size, an adapter) costs no more than a trace. A server
# has many, and Dynamo allows eight by itself, to all models together that share a decorator.
# Not for ever: hooks that a guider puts on anew for each pass make each step a kind of its own.
NUM_KINDS_TRACED = 32
# All are raised before anything of the call has run.
_NOT_ONE_GRAPH = (Unsupported, UserError, TorchRuntimeError)

_TAKES_A_LIMIT = "recompile_limit" in inspect.signature(torch.compile).parameters  # since 2.13


class CachedForward(ForwardInPlace):
    """What a transformer's `forward` is while its cache is on.

    A copy of the transformer, also a pickled one, has a copy of this with the same settings.
    """

    __slots__ = (
        "_checked",
        "_compiled",
        "_overrides_before",
        "_tracing",
        "are_weights_frozen",
        "compiles",
        "hints",
        "is_on",
        "module",
        "settings",
        "was_on_instance",
    )

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original = module.forward
        self.was_on_instance = "forward" in module.__dict__
        self.settings: Mapping[str, object] = {}
        self.hints: Sequence[Hint] = ()
        self.compiles = False
        self.are_weights_frozen = False
        self.is_on = False
        self._compiled: dict[tuple[bool, bool, bool, int | None], Forward] = {}
        self._overrides_before: Layers | None = None
        self._tracing = Tracing.TO_BE_FOUND
        self._checked = False

    @property
    def __wrapped__(self) -> Forward:
        """For those that ask for the signature."""
        return self.original

    def turn_on(
        self,
        settings: Mapping[str, object],
        hints: Sequence[Hint],
        *,
        compiles: bool,
        are_weights_frozen: bool,
    ) -> None:
        """Go by these settings from the next step on, in place of any before."""
        state = REGISTRY.of_module(self.module)
        if self._overrides_before is None:
            self._overrides_before = state.overrides
            self._tracing = state.calls.tracing = Tracing.TO_BE_FOUND
        state.overrides = add_layer((), settings)
        self.settings, self.hints, self._checked = settings, hints, not hints
        self.compiles = compiles or _is_compiled(self.module)
        self.are_weights_frozen = are_weights_frozen
        self.is_on = True

    def turn_off(self) -> None:
        """Call what was there before, with the settings that were there before."""
        state = REGISTRY.of_module(self.module)
        state.overrides = self._overrides_before or ()
        state.requests.drop()
        state.calls = CallLog()
        self._overrides_before = None
        self._compiled.clear()
        self.is_on = self.compiles = False

    def __call__(self, *args: object, **kwargs: object) -> object:
        # Where Dynamo has given up on this frame, it is not traced, but runs under its callback.
        is_compiling = torch.compiler.is_compiling() or get_eval_frame_callback() is not None
        return _run(self, args, kwargs, is_compiling)

    def run(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], is_compiling: bool
    ) -> object:
        """One call; `is_compiling`: the transformer is being compiled, or was."""
        if not self.is_on:
            return self.original(*args, **kwargs)
        if self._overrides_before is None:
            self._turn_on_copy()
        self.compiles = self.compiles or is_compiling
        result = self._call(args, kwargs)
        if not self._checked:
            self._check_hints()
        return result

    def _turn_on_copy(self) -> None:
        """A copy's weights are new: settings that were made for them since hold over its own."""
        since = REGISTRY.of_module(self.module).overrides
        self.turn_on(
            self.settings,
            self.hints,
            compiles=self.compiles,
            are_weights_frozen=self.are_weights_frozen,
        )
        state = REGISTRY.of_module(self.module)
        state.overrides = (*state.overrides, *since)

    def _call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        if self._tracing is not Tracing.ONE_GRAPH:
            result = self._forward(is_one_graph=False)(*args, **kwargs)
            if self._tracing is Tracing.TO_BE_FOUND:
                self._tracing = REGISTRY.of_module(self.module).calls.tracing
            return result
        try:
            return self._forward(is_one_graph=True)(*args, **kwargs)
        except FailOnRecompileLimitHit:
            after = Tracing.ONE_GRAPH  # The kinds of calls that were compiled stay cached.
        except _NOT_ONE_GRAPH as error:
            log.info("not traced as one graph: %s", str(error).partition("\n")[0])
            after = Tracing.AS_ASKED
        REGISTRY.of_module(self.module).calls.tracing = Tracing.AS_ASKED
        result = self._forward(is_one_graph=False)(*args, **kwargs)
        self._tracing = after  # Where the error was the caller's, this one has it too.
        return result

    def _forward(self, *, is_one_graph: bool) -> Forward:
        """The original for the cache, compiled at its first call."""
        if not self._compiled:
            self.compiles = self.compiles or _is_compiled(self.module)
        limit = self.recompile_limit()
        key = (self.compiles, self.are_weights_frozen, is_one_graph, limit)
        if key not in self._compiled:
            inner = "inductor" if self.compiles else "eager"
            limited: dict[str, Any] = {} if limit is None else {"recompile_limit": limit}
            self._compiled[key] = torch.compile(
                _alone(self.original, self.module) if is_one_graph else self.original,
                backend="cachedit",
                fullgraph=is_one_graph,
                options={"inner_backend": inner, "frozen_weights": self.are_weights_frozen},
                **limited,
            )
        return self._compiled[key]

    def recompile_limit(self) -> int | None:
        if self.compiles or not _TAKES_A_LIMIT:
            return None
        return max(NUM_KINDS_TRACED, torch._dynamo.config.recompile_limit)

    def _check_hints(self) -> None:
        """Raises: InvalidConfig, where a hint contradicts the graph."""
        graphs = report_of([REGISTRY.of_module(self.module)], ()).graphs
        found = [blocks for graph in graphs for blocks in graph.block_lists]
        if found:
            check_hints(self.hints, found)
            self._checked = True

    def __getstate__(self) -> dict[str, Any]:
        kept = (
            "module", "original", "was_on_instance", "settings", "hints", "compiles",
            "are_weights_frozen", "is_on",
        )  # fmt: skip
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._compiled, self._overrides_before, self._checked = {}, None, not self.hints
        self._tracing = Tracing.TO_BE_FOUND


@torch.compiler.disable(reason=NO_FULLGRAPH)
def _run(
    forward: CachedForward,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    is_compiling: bool,
) -> object:
    return forward.run(args, kwargs, is_compiling)


def _alone(original: Forward, module: nn.Module) -> Forward:
    """A method of `module` that calls `original`. Dynamo doesn't look again at code that it has
    left out once, as it does where a loop breaks, so this has code of its own."""

    def forward(_: nn.Module, *args: object, **kwargs: object) -> object:
        return original(*args, **kwargs)

    return MethodType(code_of_its_own(forward), module)


def _is_compiled(module: nn.Module) -> bool:
    """True for blocks that were compiled one by one (`compile_repeated_blocks`)."""
    return any(
        isinstance(m, OptimizedModule) or m._compiled_call_impl is not None
        for m in module.modules()
    )


def find_cached_forward(module: nn.Module) -> CachedForward | None:
    """The one that a transformer has, also where something else was put around it since."""
    forward: object = module.forward
    while forward is not None:
        if isinstance(forward, CachedForward):
            return forward
        forward = getattr(forward, "__wrapped__", None)
    return None


def install(module: nn.Module) -> CachedForward:
    """The forward that caches, set on the instance as hooks of accelerate are; it is still off."""
    found = find_cached_forward(module)
    if found is None:
        found = CachedForward(module)
        module.__dict__["forward"] = found
    return found


def remove(module: nn.Module) -> bool:
    """Turn the cache off and put back what was there. False where it was off already.

    Where something else was put around our forward since (hooks of accelerate), that stays, and
    ours hands each call on to what was there before; when that is gone, this can be called again.
    """
    found = find_cached_forward(module)
    if found is None:
        return False
    was_on = found.is_on
    if was_on:
        found.turn_off()
    if module.forward is found:
        _put_back(module, found)
    return was_on


def _put_back(module: nn.Module, found: CachedForward) -> None:
    if found.was_on_instance:
        module.__dict__["forward"] = found.original
    else:
        del module.__dict__["forward"]
