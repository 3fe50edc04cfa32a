"""`frozen_weights=True`: what Dynamo checks of a model at each call, left out.

Dynamo guards each module and each parameter that a graph came from: thousands of checks, which at
a host-bound hit cost as much as all the rest. While a backend is called, the guards are still a set
in the context of the trace, and checks are made of them after it returns.

    L['self']._modules['blocks']._modules['0']...weight: dtype, device, sizes   removed
    L['self']._modules['blocks']._modules['0'].training, eps, hooks, forward    removed
    L['self']                                                                   this very module
    L['x'], globals, grad mode, autocast                                        stay

So another model of the same class, which shares the code, is compiled anew; the same one isn't,
whatever becomes of it.
"""

from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import NNModuleSource
from torch._guards import ChainedSource, Source, TracingContext


def leave_out_guards_on_modules() -> None:
    """Leave out the guards on what lies in the modules of the graph being compiled, and guard the
    identity of each that the caller has. Outside of Dynamo there are no guards to leave out."""
    context = TracingContext.try_get()
    if context is None:
        return
    guards = context.guards_context.dynamo_guards
    found = [_called_module(guard.originating_source) for guard in guards]
    for module in dict.fromkeys(source for source in found if source is not None):
        guards.remove_guards_with_source(module)
        install_guard(module.make_guard(GuardBuilder.ID_MATCH))


def _called_module(source: Source) -> Source | None:
    """Where the caller has the module that this is a part of; None for what is in no module."""
    found = None
    while isinstance(source, ChainedSource):
        found = source.base if isinstance(source, NNModuleSource) else found
        source = source.base
    return found
