"""Options by name, as they were given: what cache-dit's configuration objects are here.

Unlike a rule of ours they can be changed, and tell an option that was given from its default.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, TypeVar

from dit_cachegraph.config import resolve, unknown_option
from dit_cachegraph.layers import Configuration, plain

Self = TypeVar("Self", bound="Options")


class Options(Configuration):
    """Options as attributes. `update` and `reset` change this object and return it.

    After `reset`, an option that isn't given again is None, and stands for no change: such an
    object changes some options of another one (`ParamsModifier`, `refresh_context`).

    Raises:
        InvalidConfig: an unknown name, with the nearest known one, or a bad value.
    """

    defaults: ClassVar[Mapping[str, object]] = MappingProxyType({})
    _given: dict[str, object]
    _is_partial: bool

    def __init__(self, **given: object) -> None:
        self._start({}, is_partial=False)
        self.update(**given)

    def _start(self, given: Mapping[str, object], *, is_partial: bool) -> None:
        object.__setattr__(self, "_given", dict(given))
        object.__setattr__(self, "_is_partial", is_partial)

    def update(self: Self, **given: object) -> Self:
        """Set these options; those that are None stay as they are."""
        for name in given:
            if name not in self.defaults:
                raise unknown_option(name, self.defaults)
        present = {name: plain(value) for name, value in given.items() if value is not None}
        changed = type(self).__new__(type(self))
        changed._start({**self._given, **present}, is_partial=self._is_partial)
        resolve(changed.settings())
        self._start(changed._given, is_partial=self._is_partial)
        return self

    def reset(self: Self, **given: object) -> Self:
        """Forget all options, their defaults too, and set these."""
        self._start({}, is_partial=True)
        return self.update(**given)

    empty = reset

    def copy(self: Self) -> Self:
        """Another one of the same options."""
        twin = type(self).__new__(type(self))
        twin._start(self._given, is_partial=self._is_partial)
        return twin

    def as_dict(self) -> dict[str, object]:
        """All options by name, None where `reset` has left one open."""
        rest = dict.fromkeys(self.defaults) if self._is_partial else dict(self.defaults)
        return {**rest, **self._given}

    def given(self) -> dict[str, object]:
        """The options that were given."""
        return dict(self._given)

    def settings(self) -> dict[str, object]:
        """The same for `configure`."""
        return {name: value for name, value in self.as_dict().items() if value is not None}

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or name not in self.defaults:
            raise AttributeError(f"{type(self).__name__} has no option {name}")
        return self.as_dict()[name]

    def __setattr__(self, name: str, value: object) -> None:
        self.update(**{name: value})

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.as_dict() == self.as_dict()

    __hash__ = None  # type: ignore[assignment]  # It can be changed.

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{type(self).__name__}({listed})"
