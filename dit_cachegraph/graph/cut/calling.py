"""How what an inner compiler made of a segment is called: with as little around it as is sound.

    _fn(*args) -> forward(*args) -> runtime_wrapper(list) -> CompiledFxGraph(list) -> call(list)

`compile_fx` returns the first of these (the same in torch 2.11 to 2.15): the first two only repack
the arguments, `runtime_wrapper` is AOTAutograd's, and `call` is Inductor's own code.
"""

from collections.abc import Callable
from typing import Any, cast

import torch

from dit_cachegraph.plan import CompiledSegment, Original


def as_called(original: Original) -> CompiledSegment:
    """What the driver calls of a compiled segment."""
    return (bare if original.makes_only_new_tensors else boxed)(original.function)


def boxed(compiled: Callable[..., Any]) -> CompiledSegment:
    """The innermost layer but Inductor's that takes a list of inputs and frees them as it goes."""
    inner = compiled
    while _only_repacks(inner) and hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if inner is not compiled and getattr(inner, "_boxed_call", False):
        return cast(CompiledSegment, inner)
    return lambda inputs: compiled(*inputs)


def bare(compiled: Callable[..., Any]) -> CompiledSegment:
    """Inductor's code itself, for a segment that makes only new tensors; as `boxed` where there is
    more around it than AOTAutograd's own wrapper (subclasses of tensors, an input given twice), or
    where that has something to do (autocast was on)."""
    from torch._inductor.output_code import CompiledFxGraph  # noqa: PLC0415

    function = boxed(compiled)
    wrapper = _to_be_called(function)
    is_plain = _qualname(wrapper).endswith(".runtime_wrapper") and not _is_autocast_on()
    graph = _beneath_idle_layers(_to_be_called(getattr(wrapper, "__wrapped__", None)))
    if not is_plain or not isinstance(graph, CompiledFxGraph):
        return function
    # The graph takes parts of its code with it when it dies: `CompiledTrunk.originals` has it.
    call = graph.current_callable
    assert call is not None, "it has been loaded"
    return cast(CompiledSegment, call)


def _only_repacks(function: object) -> bool:
    """Whether it is one of the first two layers, or the one that stands for both after loading."""
    name = _qualname(function)
    return "aot_module_simplified" in name or "deserialize_bundled_cache_entry" in name


def _to_be_called(function: object) -> object:
    """What a function that can be saved calls: such lies around the wrapper or inside of it, by
    whether it was loaded from a cache."""
    is_saved = type(function).__name__ == "SerializableCompiledFunction"
    return cast(Any, function).compiled_fn if is_saved else function


def _beneath_idle_layers(function: object) -> object:
    """What is called beneath layers that torch 2.11 puts around everything: for operators whose
    order matters, which none of those is that make only new tensors, and for random numbers that
    are functions of a seed, which nobody has asked for."""
    idle = ["EffectTokensWrapper"]
    if not torch._functorch.config.functionalize_rng_ops:
        idle.append("FunctionalizedRngRuntimeWrapper")
    while hasattr(function, "__wrapped__") and any(name in _qualname(function) for name in idle):
        function = function.__wrapped__
    return function


def _is_autocast_on() -> bool:
    return torch._C._is_any_autocast_enabled()


def _qualname(function: object) -> str:
    return getattr(function, "__qualname__", "")
