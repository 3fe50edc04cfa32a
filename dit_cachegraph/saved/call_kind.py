"""Of which kind a call is: all that Dynamo would make another graph for, sizes apart.

Guards on Python's objects can't be saved, so a saved program is asked for by what they would see.

    (hidden_states=Tensor[2, 64, 16], guidance=None, return_dict=False), no_grad
    hidden_states  Tensor    guidance  None    return_dict  False    no_grad, float32, ...
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    Enum,
)


class Untold(NamedTuple):
    """In the place of a value that can't be told from others of its class."""


@dataclass(frozen=True, slots=True)
class Modes:
    """What in a process changes what a graph does, or whether one may be made."""

    is_grad_enabled: bool
    is_inference_mode_enabled: bool
    is_autocast_enabled: bool
    default_dtype: torch.dtype
    matmul_precision: str
    is_deterministic: bool


def modes_now() -> Modes:
    return Modes(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._is_any_autocast_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


class Argument(NamedTuple):
    """Its class, with its plain value, its length, or the number of the tensor in the call;
    `Untold` where it has none of these."""

    of: type
    told: object

    def __str__(self) -> str:
        if isinstance(self.told, self.of):
            return repr(self.told)
        has_length = isinstance(self.told, int) and not issubclass(self.of, Tensor)
        return f"a {self.of.__name__}" + (f" of {self.told}" if has_length else "")


@dataclass(frozen=True, slots=True)
class CallKind:
    """`arguments`: of each argument by its path, the class of a tensor, which of the call's
    tensors it is and whether inference mode has made it, or the value of all else."""

    arguments: tuple[tuple[str, Argument], ...]
    modes: Modes

    @property
    def untold(self) -> tuple[str, Argument] | None:
        """The first argument whose values can't be told apart, and its path: no graph may be taken
        for another of its class."""
        return next((each for each in self.arguments if each[1].told == Untold()), None)

    def difference(self, other: "CallKind") -> str | None:
        """The first thing in which `other` differs, as words; None where there is nothing."""
        if self.modes != other.modes:
            return f"{self.modes} in place of {other.modes}"
        own, others = dict(self.arguments), dict(other.arguments)
        for path in (*own, *others):
            if own.get(path) != others.get(path):
                return f"{path} is {own.get(path)} in place of {others.get(path)}"
        return None


def kind_of(
    signature: inspect.Signature, args: Sequence[object], kwargs: Mapping[str, object]
) -> CallKind:
    """The kind of a call of a forward with this signature.

    Raises:
        TypeError: the forward doesn't take these arguments.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    found: list[tuple[str, Argument]] = []
    numbers: dict[int, int] = {}
    for name, value in bound.arguments.items():
        _add(name, value, found, numbers)
    return CallKind(tuple(found), modes_now())


def _add(
    path: str, value: object, found: list[tuple[str, Argument]], numbers: dict[int, int]
) -> None:
    items: Iterable[tuple[object, object]] = ()
    told: object = Untold()
    if isinstance(value, Tensor):
        told = numbers.setdefault(id(value), len(numbers))
    elif isinstance(value, _PLAIN):
        told = value
    elif isinstance(value, Mapping):
        told, items = len(value), value.items()
    elif isinstance(value, (list, tuple)):
        told, items = len(value), enumerate(value)
    elif isinstance(value, (slice, range)):
        told, items = 3, [(name, getattr(value, name)) for name in ("start", "stop", "step")]
    elif is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        told, items = len(names), [(name, getattr(value, name)) for name in names]
    found.append((path, Argument(type(value), told)))
    if isinstance(value, Tensor):
        # Dynamo makes another graph of one, also outside of that mode.
        how = f"whether {path} was made in inference mode"
        found.append((how, Argument(bool, value.is_inference())))
    for key, item in items:
        _add(f"{path}[{key!r}]", item, found, numbers)
