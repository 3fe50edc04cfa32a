"""Which step of which image a call is, read off its timestep.

The clock of a call is (max, sum) of each timestep argument. A schedule descends or ascends; a call
whose clock goes against the direction begins a new image:

    1000 900 800 | 1000 900 ...       descending; the second 1000 is a new image
    1000 | 1000 900 ...               a repeat of the first clock is a new image (an abort) ...
    1000 900 900 800 800              ... a later repeat is a step (Heun evaluates twice)
"""

from dataclasses import dataclass, replace

Clock = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Where an image stands. `direction` is -1, +1, or 0 while unknown."""

    first: Clock | None = None
    last: Clock | None = None
    shape: tuple[object, ...] | None = None
    num_calls: int = 0
    direction: int = 0
    is_direction_sure: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """What one call is: does it begin an image, and is that certain?"""

    trajectory: Trajectory
    is_new_image: bool
    is_certain: bool = True


def advance(
    before: Trajectory, clock: Clock | None, shape: tuple[object, ...], known_direction: int
) -> Moment:
    """The trajectory after one more call.

    `clock` is None where nothing was read; then every call is the next step. `known_direction` is
    what earlier images of this model went by, 0 if there were none.
    """
    if before.num_calls == 0 or before.shape != shape:
        return Moment(_begin(clock, shape, known_direction), is_new_image=True)
    if clock is None or before.last is None:
        return Moment(_go_on(before, clock, before.direction), is_new_image=False)
    moved = _compare(clock, before.last)
    direction = before.direction or known_direction
    if moved == 0:
        is_new = before.num_calls == 1
        after = (
            _begin(clock, shape, known_direction) if is_new else _go_on(before, clock, direction)
        )
        return Moment(after, is_new)
    if direction == 0:
        # Ascending from the first call: an ascending schedule, or an image that was aborted after
        # one step. Computing is right for both; the next call tells.
        return Moment(_go_on(before, clock, moved), is_new_image=False, is_certain=moved < 0)
    if moved == direction:
        return Moment(_go_on(before, clock, moved, is_sure=True), is_new_image=False)
    if before.num_calls == 2 and not before.is_direction_sure and before.direction > 0:
        # It was an abort: the call before this one was step 0.
        late = replace(before, first=before.last, num_calls=1)
        return Moment(_go_on(late, clock, moved, is_sure=True), is_new_image=False)
    return Moment(_begin(clock, shape, known_direction or direction), is_new_image=True)


def _begin(clock: Clock | None, shape: tuple[object, ...], direction: int) -> Trajectory:
    return Trajectory(clock, clock, shape, 1, direction, direction != 0)


def _go_on(
    before: Trajectory, clock: Clock | None, direction: int, is_sure: bool | None = None
) -> Trajectory:
    return Trajectory(
        before.first,
        clock or before.last,
        before.shape,
        before.num_calls + 1,
        direction,
        before.is_direction_sure if is_sure is None else is_sure,
    )


def _compare(now: Clock, before: Clock) -> int:
    """-1, 0 or +1 by the first entry that moved: one of several embedded arguments is the clock,
    the others (a guidance scale) stand still."""
    for a, b in zip(now, before, strict=False):
        if a != b:
            return 1 if a > b else -1
    return 0
