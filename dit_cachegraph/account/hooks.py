"""The hooks of diffusers on a model's modules: what they are, and what to do about them.

They are read off the registry that diffusers leaves on each module (`_diffusers_hook`), by whatever
call they were put there: group offloading, layerwise casting, layer skipping, caches that were put
on by `apply_*` and not by `enable_cache`. Diffusers itself isn't imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

_OFFLOADED = (
    "call `pipe.enable_model_cpu_offload()` in place of group offloading, which moves whole models"
)
_CAST = "leave `enable_layerwise_casting` out, and load the weights in the type they compute in"
_SKIPPED = "take a guider that skips no layers"
_OTHER = (
    "take them off, by `diffusers.hooks.HookRegistry.check_if_exists_or_initialize(transformer)"
    ".remove_hook(name)`"
)


@dataclass(frozen=True, slots=True)
class Hooks:
    """`names` of the hooks on a model of class `model`, on `num_modules` of its modules; `help` is
    what to do without them."""

    model: str
    names: tuple[str, ...]
    num_modules: int
    help: str

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

    def _where(self) -> str:
        modules = "module" if self.num_modules == 1 else "modules"
        return f"{self.num_modules} {modules} ({', '.join(self.names)})"


def hooks_on(model: nn.Module) -> Hooks | None:
    """The hooks of diffusers on a model and its modules, if there are any."""
    found = [hooks for module in model.modules() if (hooks := _hooks_of(module))]
    if not found:
        return None
    kinds = {name: type(hook).__name__ for hooks in found for name, hook in hooks.items()}
    return Hooks(type(model).__name__, tuple(sorted(kinds)), len(found), _help_for(kinds))


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
