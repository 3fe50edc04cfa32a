"""`frozen_weights=True`: what Dynamo does with a model at each call, left out.

It guards each module and each parameter that a graph came from, thousands of checks, and hands each
parameter over: at a host-bound hit this costs more than all the rest. While a backend is called,
guards are still a set in the context of the trace, and checks are made of them after it returns;
what a call hands over is read off the graph then too.

    guards on L['self']._modules['blocks']._modules['0']... removed
              L['self']                                     this very module
              L['x'], globals, grad mode, autocast          stay

    %weight : placeholder                        %weight : get_attr[weight]
    %x : placeholder                             %x : placeholder
    %linear : call_function(%x, %weight)   ->    %linear : call_function(%x, %weight)
    __compiled_fn(self...weight, x)              __compiled_fn(x)

So another model of the same class, which shares the code, is compiled anew; the same one isn't,
whatever becomes of it. Dynamo drops what it compiled for a model once that dies, and its parameters
with it. Buffers are handed over as ever: `Module.to` makes new ones, where it moves parameters.
A parameter that the caller gives too is one argument, and that it is the same one stays guarded.
"""

import functools
import logging
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import NNModuleSource
from torch._guards import ChainedSource, Guard, Source, TracingContext

from dit_cachegraph.graph.fx_utils import source_of

log = logging.getLogger("dit_cachegraph")
DROPS_GUARDS = (
    "frozen_weights: Dynamo checks the model as without, since under "
    "`torch._dynamo.config.caching_precompile` it can't tell one model from another of its class"
)


def freeze_weights(
    gm: fx.GraphModule, example_inputs: Sequence[object]
) -> Mapping[int, nn.Parameter]:
    """Have no call look at the model of a graph that was compiled. Returns its parameters, by the
    argument that each of them was. `gm` itself holds none of them, since it is garbage that may lie
    about for long after: it can't be run any more.

    Where no guards are to be made of the graph any more (`aot_compile`), it stays as it is, and
    where Dynamo would drop the guard on which model it is.
    """
    if torch._dynamo.config.caching_precompile:
        log.warning(DROPS_GUARDS)
        return {}
    modules = _leave_out_guards()
    own = {
        i: (placeholder, example)
        for i, (placeholder, example) in enumerate(
            zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
        )
        if isinstance(example, nn.Parameter) and _called_module(source_of(placeholder)) in modules
    }
    for placeholder, _ in own.values():
        _make_attribute(placeholder)
    gm.recompile()
    return {i: parameter for i, (_, parameter) in own.items()}


def _leave_out_guards() -> frozenset[Source]:
    """Leave out the guards on what lies in the modules of the graph being compiled, and guard the
    identity of each that the caller has: returns these."""
    context = TracingContext.try_get()
    if context is None:
        return frozenset()
    guards = context.guards_context.dynamo_guards
    found = [_called_module(guard.originating_source) for guard in guards]
    modules = dict.fromkeys(source for source in found if source is not None)
    kept = [guard for guard in guards if _is_argument_too(guard)]
    for module in modules:
        guards.remove_guards_with_source(module)
        install_guard(module.make_guard(GuardBuilder.ID_MATCH))
    install_guard(*kept)
    return frozenset(modules)


def _is_argument_too(guard: Guard) -> bool:
    """Whether it says that something is the very object that the caller gives, in no module."""
    made = guard.create_fn
    if not isinstance(made, functools.partial) or made.func is not GuardBuilder.DUPLICATE_INPUT:
        return False
    return _called_module(made.keywords["source_b"]) is None


def _called_module(source: Source | None) -> Source | None:
    """Where the caller has the module that this is a part of; None for what is in no module."""
    found = None
    while isinstance(source, ChainedSource):
        found = source.base if isinstance(source, NNModuleSource) else found
        source = source.base
    return found


def _make_attribute(placeholder: fx.Node) -> None:
    """Have an argument be an attribute, which nobody sets."""
    graph = placeholder.graph
    with graph.inserting_before(placeholder):
        attribute = graph.create_node("get_attr", placeholder.name)
    attribute.meta.update(placeholder.meta)
    placeholder.meta.pop("grapharg", None)  # Torch swaps no parameter that is held weakly.
    placeholder.replace_all_uses_with(attribute)
    graph.erase_node(placeholder)
