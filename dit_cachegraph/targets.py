"""What users hand to `configure`, `summary` and `reset`: find the transformers in it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType

from torch import nn

from dit_cachegraph.account.dynamo_records import codes_of
from dit_cachegraph.account.status import Asked
from dit_cachegraph.call_stack import compiled_from
from dit_cachegraph.exc import UnknownTarget
from dit_cachegraph.hooks import has_own_cache, hooks_on
from dit_cachegraph.models import REGISTRY

Forward = Callable[..., object]


class ForwardInPlace:
    """A forward of ours on a transformer, in the place of its own. `original`: what was there."""

    __slots__ = ("original",)

    original: Forward

    def recompile_limit(self) -> int | None:
        """How often it may be compiled, where that isn't for Dynamo's own setting to say."""
        return None


class Exported(nn.Module):
    """A model that was exported: its calls come here without Dynamo, which isn't asked about it."""


def uncached_forward(module: nn.Module) -> Forward | None:
    """What a transformer's forward was before one of ours came in its place; else None."""
    forward = module.forward
    return forward.original if isinstance(forward, ForwardInPlace) else None


def modules_in(target: object) -> list[nn.Module]:
    """The transformers that `target` is or holds: a module, what `torch.compile` returned for one,
    for its `forward` or for a function that calls it, or a pipeline.

    Raises:
        UnknownTarget: it holds none.
    """
    if (module := as_module(target)) is not None:
        return [module]
    if modules := _transformers_of_pipeline(target) or _modules_of_function(target):
        return modules
    raise UnknownTarget(
        f"expected a pipeline, a transformer or what torch.compile returned for it, got "
        f"{type(target).__name__}"
    )


def as_module(target: object) -> nn.Module | None:
    """The module that `target` is, or that `torch.compile` was given, or whose `forward` it was
    given; None for a pipeline and all else."""
    if (module := compiled_from(target)) is not None:
        return module
    original = getattr(target, "_torchdynamo_orig_callable", target)
    owner = getattr(original, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    return target if isinstance(target, nn.Module) else None


def _transformers_of_pipeline(target: object) -> list[nn.Module]:
    components = getattr(target, "components", None)
    if not isinstance(components, Mapping):
        return []
    modules = {
        name: compiled_from(value) or value
        for name, value in components.items()
        if isinstance(value, nn.Module)
    }
    named = [m for name, m in modules.items() if name.startswith("transformer")]
    found = named or [m for m in modules.values() if REGISTRY.has_module(m)]
    return list(dict.fromkeys(found))


def _modules_of_function(target: object) -> list[nn.Module]:
    """The modules that a compiled function knows by name; of several, those that are known here."""
    original = getattr(target, "_torchdynamo_orig_callable", None)
    if not isinstance(original, FunctionType):
        return []
    known = inspect.getclosurevars(original)
    defaults = [p.default for p in inspect.signature(original).parameters.values()]
    named = (*known.nonlocals.values(), *known.globals.values(), *defaults)
    modules = list(dict.fromkeys(_transformers_in(named)))
    return [m for m in modules if REGISTRY.has_module(m)] or modules


def _transformers_in(values: Iterable[object]) -> Iterable[nn.Module]:
    for value in values:
        module = as_module(value)
        yield from _transformers_of_pipeline(value) if module is None else [module]


def asked_about(target: object) -> list[Asked]:
    """What is asked about each of the transformers in `target`.

    Raises:
        UnknownTarget: it holds none.
    """
    modules = modules_in(target)
    compiled = getattr(target, "_torchdynamo_orig_callable", None)
    components = getattr(target, "components", None)
    values = components.values() if isinstance(components, Mapping) else ()
    wrapped = {module for v in values if (module := compiled_from(v)) is not None}
    return [
        Asked(
            name=type(module).__name__,
            module=module,
            codes=tuple(codes_of(module.forward if compiled is None else compiled)),
            is_compiled=compiled is not None or module in wrapped or is_compiled(module),
            notes=tuple(notes_on(module)),
            asides=tuple(asides_on(module)),
            is_exported=isinstance(module, Exported),
            recompile_limit=_recompile_limit(module),
        )
        for module in modules
    ]


def _recompile_limit(module: nn.Module) -> int | None:
    forward = module.forward
    return forward.recompile_limit() if isinstance(forward, ForwardInPlace) else None


def is_compiled(module: nn.Module) -> bool:
    """Whether its own call is compiled, in place or by `enable_cache`."""
    return module._compiled_call_impl is not None or uncached_forward(module) is not None


def notes_on(module: nn.Module) -> list[str]:
    """What `summary` says of a module before anything else."""
    foreign = foreign_cache_note(module)
    hooks = hooks_on(module) if foreign is None else None
    hooked = None if hooks is None or hooks.are_around_blocks else hooks.while_on()
    notes = (_block_by_block_note(module), foreign, hooked, _offload_note(module))
    return [note for note in notes if note is not None]


def asides_on(module: nn.Module) -> list[str]:
    """What `summary` says of a module that is cached."""
    hooks = hooks_on(module)
    aside = None if hooks is None else hooks.while_cached()
    return [] if aside is None else [aside]


def foreign_cache_note(module: nn.Module) -> str | None:
    """One sentence for a module that carries diffusers' or cache-dit's own cache."""
    if has_own_cache(module):
        return (
            f"{type(module).__name__} carries diffusers' own cache, which breaks the graph at "
            "every block: call `transformer.disable_cache()` before you compile"
        )
    if getattr(module, "_is_cached", False) is True:
        return (
            f"{type(module).__name__} carries cache-dit's cache, which breaks the graph at every "
            "block: call `cache_dit.disable_cache(pipe)` before you compile"
        )
    return None


def _offload_note(module: nn.Module) -> str | None:
    """One sentence for a module that accelerate moves piece by piece. Moved as a whole it is none
    of our business."""
    hooked = [n for n, m in module.named_modules() if n and getattr(m, "_hf_hook", None)]
    if not hooked:
        return None
    return (
        f"{type(module).__name__} is offloaded module by module ({hooked[0]} and {len(hooked) - 1} "
        "more), which breaks the graph at each of them: call `pipe.enable_model_cpu_offload()` "
        "instead, which moves whole models"
    )


def _block_by_block_note(module: nn.Module) -> str | None:
    """One sentence for a model whose blocks were compiled one by one; None for any other."""
    if module._compiled_call_impl is not None:
        return None
    compiled = [n for n, m in module.named_modules() if n and m._compiled_call_impl is not None]
    if not compiled:
        return None
    return (
        f"{type(module).__name__} was compiled block by block ({compiled[0]} and "
        f"{len(compiled) - 1} more), so no graph holds two blocks: call "
        '`model.compile(backend="cachedit")` on the whole transformer instead'
    )
