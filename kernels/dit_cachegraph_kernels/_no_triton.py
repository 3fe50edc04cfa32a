"""Stands in for Triton where it isn't installed, so that kernels can be defined. None is run."""

from collections.abc import Sequence
from typing import Any

tensor = constexpr = Any


class TritonError(Exception):
    """Never raised."""


def jit(function: Any = None, *, do_not_specialize: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """The function as it is, or what leaves it so."""
    return jit if function is None else function
