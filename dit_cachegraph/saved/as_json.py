"""Frozen data as JSON, and back by the types that its fields have: no class is named in a file.

Block("blocks.0", 3, 17)  ->  {"path": "blocks.0", "first": 3, "last": 17}
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch

T = TypeVar("T")


def to_json(value: object) -> Any:  # noqa: ANN401  # whatever JSON has
    """What `json` can write of a dataclass, its fields and theirs."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(to_json(item) for item in value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return value


def from_json(kind: type[T], told: Any) -> T:  # noqa: ANN401  # whatever JSON has
    """A value of the dataclass `kind` from what `to_json` made of one.

    Raises:
        TypeError: a field is missing, is one too many, or has another type.
    """
    return cast(T, _read(kind, told))


def _read(kind: Any, told: Any) -> object:  # noqa: ANN401  # any annotation
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _first_that_fits(parts, told)
    if origin is tuple and isinstance(told, list):
        return _read_tuple(parts, told)
    if origin is frozenset and isinstance(told, list):
        return frozenset(_read(parts[0], item) for item in told)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        return _read_fields(kind, told)
    if kind is torch.dtype and isinstance(getattr(torch, str(told), None), torch.dtype):
        return getattr(torch, told)
    if kind is torch.device and isinstance(told, str):
        return torch.device(told)
    if type(told) is (dict if origin is dict else kind):
        return told
    raise TypeError(f"{told!r} is no {kind}")


def _first_that_fits(kinds: tuple[Any, ...], told: object) -> object:
    for kind in kinds:
        try:
            return _read(kind, told)
        except TypeError:
            continue
    raise TypeError(f"{told!r} is none of {kinds}")


def _read_tuple(parts: tuple[Any, ...], told: list[object]) -> tuple[object, ...]:
    if parts[1:] == (...,):
        return tuple(_read(parts[0], item) for item in told)
    if len(parts) != len(told):
        raise TypeError(f"{told!r} are not {len(parts)}")
    return tuple(_read(part, item) for part, item in zip(parts, told, strict=True))


def _read_fields(kind: Any, told: object) -> object:  # noqa: ANN401  # a dataclass, a named tuple
    hints = get_type_hints(kind)
    # A named tuple is written without the names of its fields.
    given = dict(zip(hints, told, strict=False)) if isinstance(told, list) else told
    if not isinstance(given, dict) or given.keys() != hints.keys():
        raise TypeError(f"{told!r} is no {kind.__name__}")
    return kind(**{name: _read(hint, given[name]) for name, hint in hints.items()})
