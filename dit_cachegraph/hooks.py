"""The hooks of diffusers on a model's modules: what they are, and what to do about them.

They are read off the registry that diffusers leaves on each module (`_diffusers_hook`), by whatever
call they were put there: group offloading, layerwise casting, layer skipping, caches. Of a cache
`enable_cache` leaves a mark on the model, which `disable_cache` alone takes off again; `apply_*`
leaves none. Diffusers itself isn't imported.

    group offloading, block level    the model and each block: a block is still one graph, a link
    leaf level, a cache, a cast      modules inside the blocks, or another forward: no graph is one
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dit_cachegraph.module_lists import outermost_lists

_OFFLOADED = (
    "call `pipe.enable_model_cpu_offload()` in place of group offloading, which moves whole "
    'models, or give that `offload_type="block_level"`'
)
_CAST = "leave `enable_layerwise_casting` out, and load the weights in the type they compute in"
_SKIPPED = "take a guider that skips no layers"
_CACHE = "call `transformer.disable_cache()`"
_OTHER = (
    "take them off, by `diffusers.hooks.HookRegistry.check_if_exists_or_initialize(transformer)"
    ".remove_hook(name)`"
)


@dataclass(frozen=True, slots=True)
class Hooks:
    """`names` of the hooks on a model of class `model`, on `num_modules` of its modules; `help` is
    what to do without them. `are_around_blocks`: none is inside a block or has a forward of its
    own, so that they run before and after what they are on. `folder` has their code."""

    model: str
    names: tuple[str, ...]
    num_modules: int
    help: str
    are_around_blocks: bool
    folder: Path

    def while_on(self) -> str:
        """The sentence for a model that carries them."""
        return (
            f"{self.model} carries hooks of diffusers on {self._where()}, which break the graph at "
            f"each, so nothing is cached: {self.help}, and call `torch._dynamo.reset()` if it was "
            "called with them"
        )

    def when_compiled(self) -> str:
        """The sentence for a graph that was compiled under them."""
        return (
            f"{self.model} carried hooks of diffusers on {self._where()} when it was compiled, "
            f"which break the graph at each: {self.help}; when they are off, call "
            "`torch._dynamo.reset()`, since Dynamo goes on with what it compiled under them"
        )

    def while_cached(self) -> str | None:
        """The sentence for a model that is cached under them, where that costs something."""
        if not any("group_offloading" in name for name in self.names):
            return None
        return (
            f"diffusers' group offloading moves the weights of each block of {self.model} at every "
            "step, also of those that a hit skips, which saves their work alone: call "
            "`pipe.enable_model_cpu_offload()` in its place, which moves the whole model once an "
            "image, if the device has room for it"
        )

    def _where(self) -> str:
        modules = "module" if self.num_modules == 1 else "modules"
        return f"{self.num_modules} {modules} ({', '.join(self.names)})"


def has_own_cache(model: nn.Module) -> bool:
    """Whether diffusers' `enable_cache` was called on it, and not `disable_cache`."""
    return getattr(model, "is_cache_enabled", False) is True


def hooks_on(model: nn.Module) -> Hooks | None:
    """The hooks of diffusers on a model and its modules, if there are any."""
    found = {m: hooks for m in model.modules() if (hooks := _hooks_of(m))}
    if not found:
        return None
    kinds = {name: type(hook).__name__ for hooks in found.values() for name, hook in hooks.items()}
    registry = next(iter(found))._diffusers_hook
    return Hooks(
        model=type(model).__name__,
        names=tuple(sorted(kinds)),
        num_modules=len(found),
        help=_CACHE if has_own_cache(model) else _help_for(kinds),
        are_around_blocks=_are_around_blocks(model, found),
        folder=Path(inspect.getfile(type(registry))).parent,
    )


def _are_around_blocks(model: nn.Module, found: Mapping[nn.Module, Mapping[str, object]]) -> bool:
    blocks = [block for items in outermost_lists(model).values() for block in items]
    inside = {part for block in blocks for part in block.modules() if part is not block}
    if not inside.isdisjoint(found):
        return False
    each = [hook for hooks in found.values() for hook in hooks.values()]
    return not any(hasattr(hook, "new_forward") for hook in each)


def _hooks_of(module: nn.Module) -> Mapping[str, object]:
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", None)
    return hooks if isinstance(hooks, Mapping) else {}


def _help_for(kinds: Mapping[str, str]) -> str:
    """By the names of the hooks and of their classes."""
    if any("group_offloading" in name for name in kinds):
        return _OFFLOADED
    if any("layerwise_casting" in name for name in kinds):
        return _CAST
    if any("Skip" in kind for kind in kinds.values()):
        return _SKIPPED
    return _OTHER
