"""Where an image stands, read off the timesteps of its calls.

The clock of a call is (max, sum) of each timestep argument. A schedule descends or ascends; a call
whose clock goes against the direction can't be a further step of the image:

    1000 900 800 | 1000 900 ...       descending; the second 1000 is a new image
    1000 | 1000 900 ...               a repeat of the first clock is a new image (an abort) ...
    1000 900 900 800 800              ... a later repeat is a step (Heun evaluates twice)
    1000 900 800 | 600 500 ...        latents unlike those at 800: a new image as well
    1000 900 800 ...                  ... but a first step may forget its latents (zero SNR)
"""

from typing import NamedTuple

from dit_cachegraph.runtime.sketch import MIN_CORRELATION, SMOOTH

Clock = tuple[float, ...]
Shape = tuple[object, ...]

# With a schedule's shift `s` over `n` steps, what is left after the last step is 1 + 2 (s - 1) / n
# of the last stride, and before it more than 2.
MAX_STRIDES_LEFT = 1.75
MAX_SHARE_LEFT = 0.35


class Known(NamedTuple):
    """What earlier images of a model showed: the direction of its schedules, 0 if none did; whether
    the latents of a first step say nothing of those of the second."""

    direction: int = 0
    forgets_start: bool | None = None


class Trajectory(NamedTuple):
    """Where an image stands. `direction` is -1, +1, or 0 while unknown; `before_last` is the last
    clock that differed from `last`; `is_start_unsure`: the second call may have been the first of
    another image."""

    first: Clock | None = None
    last: Clock | None = None
    before_last: Clock | None = None
    shape: Shape | None = None
    num_calls: int = 0
    direction: int = 0
    is_direction_sure: bool = False
    is_start_unsure: bool = False


class Moment(NamedTuple):
    """What one call is. `restarts_at`: 0 for the first step of an image, 1 where the call before
    turns out to have been that, None for a further step. `doubt` says why the call must compute
    whatever the rule says, or is None. `known`: what is known of the model now."""

    trajectory: Trajectory
    known: Known
    restarts_at: int | None = None
    doubt: str | None = None

    @property
    def is_new_image(self) -> bool:
        return self.restarts_at == 0


UNKNOWN_DIRECTION = "direction of the schedule unknown"
UNLIKE = "latents unlike those of the step before"


def advance(
    before: Trajectory,
    clock: Clock | None,
    shape: Shape,
    known: Known,
    close: float | None = None,
) -> Moment:
    """The trajectory after one more call, or that of a new image where the call can't be one more.

    `clock` is None where nothing was read; then every call is the next step. `close` is how near
    the latents are to the last ones (`sketch.closeness`), None where that wasn't read.
    """
    if before.num_calls == 0 or before.shape != shape:
        return begin(clock, shape, known)
    is_near = close is None or close >= MIN_CORRELATION
    if clock is None or before.last is None:
        new = begin(clock, shape, known)
        return Moment(_go_on(before, clock, before.direction), known) if is_near else new
    moved = _compare(clock, before.last)
    direction = before.direction or known.direction
    if not is_near:
        may_forget = before.num_calls == 1 and known.forgets_start is not False
        # Another guidance scale, beside a timestep that stands still, is no step.
        moved = _compare(clock[:2], before.last[:2])
        if not may_forget or moved == 0 or moved != (direction or -1):
            return begin(clock, shape, known)
        after = _go_on(before, clock, moved)._replace(is_start_unsure=True)
        return Moment(after, known, doubt=UNLIKE)
    if before.is_start_unsure:
        before, known, restarts_at = _settle_start(before, known, close)
        moment = _by_clock(before, clock, known, moved)
        return moment._replace(restarts_at=restarts_at if moment.restarts_at is None else 0)
    if before.num_calls == 1 and close is not None and moved != 0:
        known = known._replace(forgets_start=False)
    return _by_clock(before, clock, known, moved)


def _settle_start(
    before: Trajectory, known: Known, close: float | None
) -> tuple[Trajectory, Known, int | None]:
    """The third call tells whether the second was a step: where latents go on smoothly from it, a
    first step would not have forgotten its own, so the first call was an image that was aborted."""
    before = before._replace(is_start_unsure=False)
    if close is None or close < SMOOTH:
        return before, known._replace(forgets_start=True), None
    late = before._replace(first=before.last, before_last=None, num_calls=1)
    return late, known._replace(forgets_start=False), 1


def _by_clock(before: Trajectory, clock: Clock, known: Known, moved: int) -> Moment:
    if moved == 0 and before.num_calls == 1:
        return begin(clock, before.shape or (), known)
    if moved == 0:
        doubt = UNKNOWN_DIRECTION if _is_unsure(before) else None
        return Moment(_go_on(before, clock, before.direction), known, doubt=doubt)
    direction = before.direction or known.direction
    if moved == direction or (direction == 0 and moved < 0):
        is_sure = before.is_direction_sure or before.num_calls > 1
        if is_sure:
            known = known._replace(direction=moved)
        return Moment(_go_on(before, clock, moved, is_sure), known)
    if direction == 0:
        # Ascending from the first call: an ascending schedule, or an image that was aborted after
        # one step. Computing is right for both; a later call tells.
        return Moment(_go_on(before, clock, moved), known, doubt=UNKNOWN_DIRECTION)
    if _is_unsure(before):
        # It was an abort: the call before this one was step 0.
        late = before._replace(first=before.last, num_calls=1)
        return Moment(_go_on(late, clock, moved), known, 1, UNKNOWN_DIRECTION)
    return begin(clock, before.shape or (), known)


def begin(clock: Clock | None, shape: Shape, known: Known) -> Moment:
    """The first step of an image."""
    first = Trajectory(clock, clock, None, shape, 1, known.direction, known.direction != 0)
    return Moment(first, known, 0)


def looks_whole(trajectory: Trajectory) -> bool:
    """True if the schedule has hardly anything left: another stride like the last one would pass
    its end, which is 0, or 1 or 1000 where it ascends. An image that was aborted has more left.
    """
    first, last, before = trajectory.first, trajectory.last, trajectory.before_last
    if first is None or last is None or before is None:
        return False
    for start, a, b in zip(first[::2], last[::2], before[::2], strict=False):  # the maxima
        if a != b:
            end = 0.0 if a < b else 1.0 if a <= 1 else 1000.0
            left = abs(end - a)
            is_near_the_end = left <= MAX_SHARE_LEFT * abs(end - start)
            return is_near_the_end and left < MAX_STRIDES_LEFT * abs(a - b)
    return False


def _is_unsure(trajectory: Trajectory) -> bool:
    """True while all that was seen is an ascent, of a model whose direction isn't known."""
    return trajectory.direction > 0 and not trajectory.is_direction_sure


def _go_on(
    before: Trajectory, clock: Clock | None, direction: int, is_sure: bool | None = None
) -> Trajectory:
    has_moved = clock is not None and clock != before.last
    return Trajectory(
        before.first,
        before.last if clock is None else clock,
        before.last if has_moved else before.before_last,
        before.shape,
        before.num_calls + 1,
        direction,
        before.is_direction_sure if is_sure is None else is_sure,
        before.is_start_unsure,
    )


def _compare(now: Clock, before: Clock) -> int:
    """-1, 0 or +1 by the first entry that moved: one of several embedded arguments is the clock,
    the others (a guidance scale) stand still."""
    for a, b in zip(now, before, strict=False):
        if a != b:
            return 1 if a > b else -1
    return 0
