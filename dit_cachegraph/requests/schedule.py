"""Where an image stands on its schedule, read off the timesteps of its calls.

The clock of a call is (max, sum) of each timestep argument. A schedule descends or ascends; a call
whose clock goes against the direction can't be a further step of the image:

    1000 900 800 | 1000 900 ...       descending; the second 1000 is a new image
    1000 | 1000 900 ...               a repeat of the first clock is a new image (an abort) ...
    1000 900 900 800 800              ... a later repeat is a step (Heun evaluates twice)
    1000 900 800 | 600 500 ...        latents unlike those at 800: a new image as well
    1000 900 800 ...                  ... but a first step may forget its latents (zero SNR)

Nothing is decided later: where a call may or may not be the next step, it is taken for that, and
what was kept is forgotten, so that it computes.
"""

from typing import NamedTuple

from dit_cachegraph.requests.latents import MIN_CORRELATION, SURELY_NEAR

Clock = tuple[float, ...]
Shape = tuple[object, ...]

# With a schedule's shift `s` over `n` steps, what is left after the last step is 1 + 2 (s - 1) / n
# of the last stride, and before it more than 2.
MAX_STRIDES_LEFT = 1.75
MAX_SHARE_LEFT = 0.35
MAX_ENDS = 16
UNKNOWN_DIRECTION = "direction of the schedule unknown"
UNLIKE = "latents unlike those of the step before"
TURNED = "its schedule goes the other way than those before"


class Known(NamedTuple):
    """What images of a model showed: the direction of its schedules, 0 if none did; and that the
    latents of a first step are surely near those of the second."""

    direction: int = 0
    keeps_start: bool = False

    def joined(self, later: "Known") -> "Known":
        """With what was seen since: of several steps at once, each knows what it saw itself."""
        return Known(later.direction or self.direction, self.keeps_start or later.keeps_start)


class Trajectory(NamedTuple):
    """`direction` is -1, +1, or 0 while unknown; `before_last` is the last clock that differed from
    `last`."""

    first: Clock | None = None
    last: Clock | None = None
    before_last: Clock | None = None
    shape: Shape | None = None
    num_calls: int = 0
    direction: int = 0


class StepMatch(NamedTuple):
    """What one call is. `known` is what is known of the model now; `doubt` says why the call
    computes whatever the rule says, and forgets what was kept. `close` is how near its latents are
    to the last ones of the track, None where that wasn't read."""

    trajectory: Trajectory
    known: Known
    is_new_image: bool = False
    doubt: str | None = None
    close: float | None = None


def advance(
    before: Trajectory, clock: Clock | None, shape: Shape, known: Known, close: float | None = None
) -> StepMatch:
    """The trajectory after one more call, or that of a new image where the call can't be one more.

    `clock` is None where nothing was read; then every call is the next step. `close` is how near
    the latents are to the last ones (`latents.closeness`), None where that wasn't read.
    """
    new = begin(clock, shape, known)
    if before.num_calls == 0 or before.shape != shape:
        return new
    is_near = close is None or close >= MIN_CORRELATION
    if clock is None or before.last is None:
        return StepMatch(_go_on(before, clock, before.direction), known) if is_near else new
    # Where latents are unlike, another guidance scale beside a still timestep is no step.
    moved = _compare(clock, before.last) if is_near else _compare(clock[:2], before.last[:2])
    direction = before.direction or known.direction
    is_first = before.num_calls == 1
    if moved == 0 and is_near and not is_first:
        doubt = UNKNOWN_DIRECTION if direction > 0 and known.direction == 0 else None
        return StepMatch(_go_on(before, clock, direction), known, doubt=doubt)
    if moved == 0:
        return new
    if not is_near:
        is_next = is_first and not known.keeps_start and moved == (direction or -1)
        return StepMatch(_go_on(before, clock, moved), known, doubt=UNLIKE) if is_next else new
    if is_first and close is not None and close >= SURELY_NEAR:
        known = Known(known.direction, keeps_start=True)
    if direction == 0 and moved > 0:
        return StepMatch(_go_on(before, clock, moved), known, doubt=UNKNOWN_DIRECTION)
    if moved == (direction or -1):
        known = known if is_first else Known(moved, known.keeps_start)
        return StepMatch(_go_on(before, clock, moved), known)
    return new


def turned(before: Trajectory, clock: Clock | None, known: Known) -> StepMatch | None:
    """The second step of an image that goes the other way than those before, as one does after an
    inversion; None where it can't be. Its latents are surely those of the first, one step on."""
    if clock is None or before.last is None or before.num_calls != 1:
        return None
    moved = _compare(clock[:2], before.last[:2])
    return StepMatch(_go_on(before, clock, moved), known, doubt=TURNED) if moved != 0 else None


def begin(clock: Clock | None, shape: Shape, known: Known) -> StepMatch:
    """The first step of an image."""
    first = Trajectory(clock, clock, None, shape, 1, known.direction)
    return StepMatch(first, known, is_new_image=True)


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


class Ends:
    """How images of a model ended: the number of their calls, and the last clock."""

    def __init__(self) -> None:
        self.clocks: dict[int, Clock] = {}

    def learn(self, trajectory: Trajectory) -> None:
        """Remember the end of an image that is over, if it ran its whole schedule."""
        if trajectory.last is not None and looks_whole(trajectory):
            self.clocks.pop(trajectory.num_calls, None)
            self.clocks[trajectory.num_calls] = trajectory.last
            while len(self.clocks) > MAX_ENDS:
                del self.clocks[next(iter(self.clocks))]

    def are_reached(self, trajectory: Trajectory) -> bool:
        end = self.clocks.get(trajectory.num_calls)
        return end is not None and end == trajectory.last

    def unlearn(self, trajectory: Trajectory) -> None:
        """The image went on after this point."""
        self.clocks.pop(trajectory.num_calls, None)


def _go_on(before: Trajectory, clock: Clock | None, direction: int) -> Trajectory:
    has_moved = clock is not None and clock != before.last
    return Trajectory(
        before.first,
        last=before.last if clock is None else clock,
        before_last=before.last if has_moved else before.before_last,
        shape=before.shape,
        num_calls=before.num_calls + 1,
        direction=direction,
    )


def _compare(now: Clock, before: Clock) -> int:
    """-1, 0 or +1 by the first entry that moved: one of several embedded arguments is the clock,
    the others (a guidance scale) stand still."""
    for a, b in zip(now, before, strict=False):
        if a != b:
            return 1 if a > b else -1
    return 0
