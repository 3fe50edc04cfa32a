"""What the caller gave the model: the tensors, and what tells one kind of call from another."""

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

_PLAIN = (str, bool, int, float, type(None), torch.dtype)


class Given(NamedTuple):
    """The caller's tensors by name; `signature` is equal for calls with arguments of the same
    names, shapes and types, and the same flags and numbers."""

    signature: Hashable
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]


def given_to(module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> Given:
    """What a call of `module` was given."""
    leaves = list(_leaves("", {**_named(module, args), **kwargs}))
    tensors = [(name, value) for name, value in leaves if isinstance(value, Tensor)]
    signature = tuple([(name, _key(value)) for name, value in leaves])
    names = tuple([name for name, _ in tensors])
    key = (signature, torch.is_inference_mode_enabled())
    return Given(key, names, tuple([value for _, value in tensors]))


def _named(module: nn.Module, args: Sequence[object]) -> dict[str, object]:
    """The positional arguments, by name."""
    if not args:
        return {}
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    names += [f"argument {i}" for i in range(len(names), len(args))]
    return dict(zip(names, args, strict=False))


def _leaves(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}.{i}", item)
    else:
        yield name, value


def _key(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return (value.shape, value.dtype, str(value.device))
    return (type(value), value if isinstance(value, _PLAIN) else None)
