"""Checks of option values: each says the name, the value seen and what is allowed."""

import math
from collections.abc import Sequence

from dit_cachegraph.exc import InvalidConfig

MASK_POLICIES = ("slow", "medium", "fast", "ultra")


def check_int(
    name: str,
    value: object,
    *,
    at_least: int,
    at_most: int | None = None,
    none_is_ok: bool = False,
) -> None:
    if value is None and none_is_ok:
        return
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < at_least or (at_most is not None and value > at_most):  # type: ignore[operator]
        wanted = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise InvalidConfig(f"{name} must be an integer {wanted}, got {value!r}")


def check_number(name: str, value: object, *, none_is_ok: bool = False) -> None:
    if value is None and none_is_ok:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not _is_finite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise InvalidConfig(f"{name} must be a finite number of at least 0, got {value!r}")


def check_share(name: str, value: object, *, none_is_ok: bool = False) -> None:
    """A number from 0 to 1: a percentage is refused."""
    check_number(name, value, none_is_ok=none_is_ok)
    if value is not None and value > 1:  # type: ignore[operator]
        raise InvalidConfig(f"{name} must be at most 1, got {value!r}")


def _is_finite(value: float) -> bool:
    """False also for an integer that no float holds."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_numbers(name: str, value: object) -> tuple[float, ...]:
    """Finite numbers, at least one, as a tuple; any sequence of them is taken."""
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not value
        or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value)
        or not all(map(_is_finite, value))
    ):
        raise InvalidConfig(f"{name} must be a sequence of finite numbers, got {value!r}")
    return tuple(value)


def check_grid(name: str, value: object) -> tuple[int, ...] | None:
    """Two or three sizes, or None, as a tuple; any sequence of them is taken."""
    if value is None:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or len(value) not in (2, 3)
        or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in value)
    ):
        wanted = "(height, width) or (frames, height, width)"
        raise InvalidConfig(f"{name} must be {wanted}, got {value!r}")
    return tuple(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise InvalidConfig(f"{name} must be one of {known}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidConfig(f"{name} must be True or False, got {value!r}")


def check_mask(name: str, value: object) -> tuple[int, ...] | None:
    """The mask as a tuple of 0 and 1; any sequence of them is taken."""
    if value is None:
        return None
    if isinstance(value, str) and value in MASK_POLICIES:
        raise InvalidConfig(
            f"{name} takes the mask itself: dit_cachegraph.steps_mask(total_steps=..., "
            f"mask_policy={value!r}) makes it"
        )
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not value
        or any(v not in (0, 1) for v in value)
    ):
        raise InvalidConfig(f"{name} must be a sequence of 0 and 1, one a step, got {value!r}")
    return tuple(int(v) for v in value)


def check_ids(name: str, value: object, count: int | None = None) -> tuple[int, ...] | None:
    """Block numbers, below `count` if that is known, as a tuple; any sequence of them is taken."""
    if value is None:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value)
        or (count is not None and any(v >= count for v in value))
    ):
        wanted = "from 0 on" if count is None else f"from 0 to {count - 1}"
        raise InvalidConfig(f"{name} must be block numbers {wanted}, got {value!r}")
    return tuple(value)


def check_sequence(name: str, value: object) -> Sequence[object] | None:
    """Any sequence but a text."""
    if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
        raise InvalidConfig(f"{name} must be a sequence, got {value!r}")
    return value
