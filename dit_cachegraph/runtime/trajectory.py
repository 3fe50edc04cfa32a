"""Which step of which image a call is, read off its timestep.

The clock of a call is (max, sum) of each timestep argument. A schedule descends or ascends; a call
whose clock goes against the direction begins a new image:

    1000 900 800 | 1000 900 ...       descending; the second 1000 is a new image
    1000 | 1000 900 ...               a repeat of the first clock is a new image (an abort) ...
    1000 900 900 800 800              ... a later repeat is a step (Heun evaluates twice)

Two images at once under one conditioning can't be told apart by their clocks. What can be told is
where it might be so: an image that was left at 800 may go on at 700, and so may the one after it.
From there on the calls of that image are in doubt, and compute; those of a named request never are.

1000 900 800 | 1000 900 800 700?  the first image going on, or the second
"""

from typing import NamedTuple

Clock = tuple[float, ...]
MAX_OPEN_ENDS = 16


class Trajectory(NamedTuple):
    """Where an image stands. `direction` is -1, +1, or 0 while unknown. `open_ends` are the last
    clocks of earlier images of the branch that this one hasn't passed; `is_contested`: it passed
    one, and can't be told from that image any more."""

    first: Clock | None = None
    last: Clock | None = None
    shape: tuple[object, ...] | None = None
    num_calls: int = 0
    direction: int = 0
    is_direction_sure: bool = False
    open_ends: tuple[Clock, ...] = ()
    is_contested: bool = False


class Moment(NamedTuple):
    """What one call is. `restarts_at`: 0 for the first step of an image, 1 where the call before
    turns out to have been that, None for a further step. `doubt` says why the call must compute
    whatever the rule says, or is None."""

    trajectory: Trajectory
    restarts_at: int | None = None
    doubt: str | None = None

    @property
    def is_new_image(self) -> bool:
        return self.restarts_at == 0


UNKNOWN_DIRECTION = "direction of the schedule unknown"
AMBIGUOUS = "ambiguous request: name it with request(key)"


def advance(
    before: Trajectory, clock: Clock | None, shape: tuple[object, ...], known_direction: int
) -> Moment:
    """The trajectory after one more call.

    `clock` is None where nothing was read; then every call is the next step. `known_direction` is
    what earlier images of this model went by, 0 if there were none.
    """
    if before.num_calls == 0 or before.shape != shape:
        return Moment(_begin(before, clock, shape, known_direction), 0)
    if clock is None or before.last is None:
        return Moment(_go_on(before, clock, before.direction))
    moved = _compare(clock, before.last)
    if moved == 0 and before.num_calls == 1:
        return Moment(_begin(before, clock, shape, known_direction), 0)
    if moved == 0:
        return _repeat(before, clock)
    direction = before.direction or known_direction
    if moved == direction or (direction == 0 and moved < 0):
        return _forward(before, clock, moved)
    if direction == 0:
        # Ascending from the first call: an ascending schedule, or an image that was aborted after
        # one step. Computing is right for both; a later call tells.
        return Moment(_go_on(before, clock, moved), doubt=UNKNOWN_DIRECTION)
    if _is_unsure(before):
        # It was an abort: the call before this one was step 0.
        late = before._replace(first=before.last, num_calls=1)
        return Moment(_go_on(late, clock, moved), restarts_at=1, doubt=UNKNOWN_DIRECTION)
    return Moment(_begin(before, clock, shape, known_direction), 0)


def _is_unsure(trajectory: Trajectory) -> bool:
    """True while all that was seen is an ascent, of a model whose direction isn't known."""
    return trajectory.direction > 0 and not trajectory.is_direction_sure


def _repeat(before: Trajectory, clock: Clock) -> Moment:
    after = _go_on(before, clock, before.direction)
    if _is_unsure(before):
        return Moment(after, doubt=UNKNOWN_DIRECTION)
    return Moment(after, doubt=AMBIGUOUS if after.is_contested else None)


def _forward(before: Trajectory, clock: Clock, direction: int) -> Moment:
    is_sure = before.is_direction_sure or before.num_calls > 1
    after = _go_on(before, clock, direction, is_sure)
    left = tuple(end for end in before.open_ends if _compare(clock, end) != direction)
    is_passing = len(left) < len(before.open_ends)
    if is_passing:
        after = after._replace(open_ends=left, is_contested=True)
    return Moment(after, doubt=AMBIGUOUS if after.is_contested else None)


def _begin(
    before: Trajectory, clock: Clock | None, shape: tuple[object, ...], direction: int
) -> Trajectory:
    ends = before.open_ends if before.last is None else (*before.open_ends, before.last)
    ends = tuple(dict.fromkeys(ends))[-MAX_OPEN_ENDS:]
    return Trajectory(clock, clock, shape, 1, direction, direction != 0, ends)


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
        before.open_ends,
        before.is_contested,
    )


def _compare(now: Clock, before: Clock) -> int:
    """-1, 0 or +1 by the first entry that moved: one of several embedded arguments is the clock,
    the others (a guidance scale) stand still."""
    for a, b in zip(now, before, strict=False):
        if a != b:
            return 1 if a > b else -1
    return 0
