"""A value that is worked out when it is first asked for, and kept: the error of a computed step is
on its way from the device until the next step, or a report, has to know it."""

from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Later(Generic[T]):
    """What `make` gives, which is asked at most once in a thread, and gives the same in each; or a
    `value` that is known."""

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], T] | None, value: T | None = None) -> None:
        self._make, self._value = make, value

    @classmethod
    def known(cls, value: T) -> "Later[T]":
        """One that is known already."""
        return cls(None, value)

    def value(self) -> T:
        """The value. Where `make` raises, so does this, and asks again the next time."""
        make = self._make
        if make is not None:
            # In this order: another thread that finds nothing to make finds the value.
            self._value = make()
            self._make = None
        return cast(T, self._value)
