"""What of a model decides what is compiled for it, as lines, and whether it has changed since.

Dynamo's guards on a model can't be saved. These stand for them: what was compiled runs only on a
model of the same lines.

    blocks.0.up: Linear                             blocks.0.up.weight: [16, 8] float32
    blocks.0.attn.processor: FluxAttnProcessor      blocks.0.scale: 0.5
    blocks.0: hooks or another forward (1)
"""

import operator
from collections.abc import Iterator, Sequence, Sized
from enum import Enum
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, Enum, torch.dtype)
_HOLDS = (dict, list, tuple)
# `torch.compile` notes the last on the module that it is given, whether it is called or not.
_OF_EACH_MODULE = frozenset((*vars(nn.Module()), "_is_torch_compile"))


class _Attribute(NamedTuple):
    """`holder[name]`, which a forward may go by."""

    path: str
    holder: Any
    name: str | int

    @property
    def value(self) -> object:
        return self.holder[self.name]

    def __str__(self) -> str:
        return f"{self.path}: {_told(self.value)}"


def parts_of(module: nn.Module) -> tuple[str, ...]:
    """A line for all of the model that decides what is compiled."""
    modules = list(module.named_modules())
    lines = [f"{n or 'it'}: {type(m).__name__}{_training(m)}" for n, m in modules]
    lines += [
        f"{n or 'it'}: hooks or another forward ({num_hooks(m)})"
        for n, m in modules
        if num_hooks(m)
    ]
    tensors = (*module.named_parameters(), *module.named_buffers())
    lines += [f"{n}: {tensor_line(t)}" for n, t in tensors]
    held = [attribute for n, m in modules for attribute in _attributes(n, m)]
    lines += [str(attribute) for attribute in held if not isinstance(attribute.value, _HOLDS)]
    return tuple(lines)


def tensor_line(tensor: Tensor) -> str:
    """Sizes and dtype of a weight, a class of its own, and how it lies in memory."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    kind = type(tensor)
    of = "" if kind in (Tensor, nn.Parameter, nn.Buffer) else f" of {kind.__name__}"
    lies = "" if tensor.is_contiguous() else f" with strides {list(tensor.stride())}"
    return f"{list(tensor.shape)} {dtype}{of}{lies}"


def other_model(saved: Sequence[str], module: nn.Module) -> str | None:
    """What of the model isn't as in lines of before; None where all is."""
    here = parts_of(module)
    if tuple(saved) == here:
        return None
    first = next((line for line in here if line not in set(saved)), None)
    if first is not None:
        return f"this one has `{first}`"
    lost = next((line for line in saved if line not in set(here)), "the order of its parts")
    return f"this one lacks `{lost}`"


def num_hooks(module: nn.Module) -> int:
    """How much more runs at a call of the module than its own forward."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return hooks + ("forward" in vars(module))


def kept_tensors(module: nn.Module) -> frozenset[str]:
    """Paths of the tensors that it holds beside weights and buffers, also in dictionaries and
    lists. Many a model makes them at its first call, and what was compiled later reads them."""
    held = [
        (f"{path}.{name}".lstrip("."), value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in _OF_EACH_MODULE
    ]
    return frozenset(found for path, value in held for found in _tensors_in(path, value))


def _tensors_in(path: str, value: object) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield path
    elif isinstance(value, _HOLDS):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _tensors_in(f"{path}[{key!r}]", value[key])
    elif callable(value) and not isinstance(value, (type, nn.Module)):
        for name, held in getattr(value, "__dict__", {}).items():
            if isinstance(held, (Tensor, *_HOLDS)):
                yield from _tensors_in(f"{path}.{name}", held)


class WatchedParts:
    """Whether a model still is as it was. Nothing is walked but at a call after a change."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._known = [parts_of(module)]
        self._seen = _Seen(module)
        self._change: str | None = None

    def change(self) -> str | None:
        """What of it is otherwise now, as words."""
        if not self._seen.is_unchanged():
            changes = [other_model(known, self._module) for known in self._known]
            self._change = None if None in changes else changes[-1]
            self._seen = _Seen(self._module)
        return self._change

    def accept(self) -> None:
        """What it is now is right too: a call has made it so, as its forward does."""
        if not self._seen.is_unchanged():
            self._known.append(parts_of(self._module))
            self._seen = _Seen(self._module)


class _Seen:
    """The very objects that a model is made of: no function of Python runs for each of them."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        told = [attribute for m in modules for attribute in _attributes("", m)]
        told += [_Attribute("", vars(m), "training") for m in modules]
        self._holders = [attribute.holder for attribute in told]
        self._names = [attribute.name for attribute in told]
        self._parts: list[dict[str, Any]] = []
        for held in modules:
            self._parts += (held._modules, held._parameters, held._buffers)
        hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
        inside = [c for attribute in told if (c := _container(attribute.value)) is not None]
        self._counted: list[Sized] = [*map(vars, modules), *self._parts, *hooks, *inside]
        self._count = self._count_now()
        self._objects = list(self._objects_now())

    def is_unchanged(self) -> bool:
        if self._count_now() != self._count:
            return False
        try:
            return all(map(operator.is_, self._objects_now(), self._objects))
        except KeyError:  # An attribute has gone, and another one come.
            return False

    def _count_now(self) -> int:
        return sum(map(len, self._counted))

    def _objects_now(self) -> Iterator[object]:
        parts = chain.from_iterable(map(dict.values, self._parts))
        return chain(parts, map(operator.getitem, self._holders, self._names))


def _attributes(path: str, module: nn.Module) -> Iterator[_Attribute]:
    """What a module holds beside parts, hooks and tensors: plain values, functions, and
    dictionaries, lists and tuples, with the plain values inside of them. Of its configuration not
    what is private: where it came from, and lists whose order differs between processes."""
    config = getattr(module, "config", None)
    for name in sorted(vars(module).keys() - _OF_EACH_MODULE):
        is_config = isinstance(config, dict) and vars(module)[name] is config
        label = f"{path}.{'config' if is_config else name}".lstrip(".")
        yield from _held(_Attribute(label, vars(module), name), has_private=is_config)


def _held(attribute: _Attribute, *, has_private: bool = False) -> Iterator[_Attribute]:
    path, value = attribute.path, attribute.value
    if isinstance(value, _PLAIN):
        yield attribute
    elif isinstance(value, _HOLDS):
        yield attribute
        for key in value if isinstance(value, dict) else range(len(value)):
            if not (has_private and str(key).startswith("_")):
                yield from _held(_Attribute(f"{path}[{key!r}]", value, key))
    elif callable(value) and not isinstance(value, type):
        yield attribute
        inside = getattr(value, "__dict__", {})
        plain = [name for name, held in inside.items() if isinstance(held, _PLAIN)]
        yield from (_Attribute(f"{path}.{name}", inside, name) for name in plain)


def _container(value: object) -> Sized | None:
    """Where more may come to lie than is there now."""
    if isinstance(value, dict | list):
        return value
    inside = getattr(value, "__dict__", None)
    return inside if isinstance(inside, dict) else None


def _told(value: object) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value.__qualname__
    return type(value).__name__


def _training(module: nn.Module) -> str:
    return " in training" if module.training else ""
