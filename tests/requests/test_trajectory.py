"""Where an image begins, read off the clock of each call.

By design a new image can't be told from a step, and counts as a step, where it starts below the
last timestep of the image before it, or on it (Heun evaluates twice). While no direction is known,
a call that ascends is in doubt: it computes; if the next one descends, that begins an image. Which
of several images under way a call goes on with is told elsewhere (test_find_image.py).
"""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_cachegraph.requests.schedule import (
    UNKNOWN_DIRECTION,
    UNLIKE,
    Clock,
    Known,
    Trajectory,
    advance,
    looks_whole,
)

SHAPE = (2, 16, 8)
OTHER_SHAPE = (2, 25, 8)
DESCENDING, ASCENDING, UNKNOWN = -1, 1, 0


class Model:
    """One branch of a model, which learns from its images as the driver does."""

    def __init__(self, direction: int = UNKNOWN) -> None:
        self.known = Known(direction)
        self.trajectory = Trajectory()

    def call(
        self,
        clock: Clock | None,
        shape: tuple[object, ...] = SHAPE,
        close: float | None = None,
    ) -> str:
        """ "new", "step", or what there is doubt about."""
        match = advance(self.trajectory, clock, shape, self.known, close)
        self.trajectory, self.known = match.trajectory, match.known
        if match.doubt is not None:
            assert not match.is_new_image
            return match.doubt
        return "new" if match.is_new_image else "step"


MARKS = {"new": "N", "step": "s", UNKNOWN_DIRECTION: "?", UNLIKE: "u"}


def seen(timesteps: Iterable[float], direction: int = UNKNOWN) -> str:
    """What each call of a batch of two is taken for, by MARKS."""
    model = Model(direction)
    return "".join(MARKS[model.call((float(t), 2.0 * t))] for t in timesteps)


@pytest.mark.parametrize(
    ("timesteps", "direction", "expected"),
    [
        pytest.param([1000, 900, 800], UNKNOWN, "Nss", id="descending"),
        pytest.param([1000, 900, 800, 1000, 900], UNKNOWN, "NssNs", id="two images"),
        pytest.param([0, 0.25, 0.5, 0.75], UNKNOWN, "N?ss", id="ascending"),
        pytest.param([0, 0.25, 0.5, 0, 0.25, 0.5], UNKNOWN, "N?sNss", id="two ascending images"),
        pytest.param([0, 0.25, 0.5], ASCENDING, "Nss", id="known to ascend"),
        pytest.param([9, 8, 8, 7, 7], UNKNOWN, "Nssss", id="Heun"),
        pytest.param([9, 8, 8, 7, 7, 9, 8, 8], UNKNOWN, "NssssNss", id="two images by Heun"),
        pytest.param([9, 9, 9], DESCENDING, "NNN", id="images of one step"),
        pytest.param([9, 9, 9], UNKNOWN, "NNN", id="images of one step, nothing known"),
        pytest.param([9, 8, 9, 8, 9, 8], UNKNOWN, "NsNsNs", id="images of two steps"),
        pytest.param([9, 9, 8, 7], DESCENDING, "NNss", id="abort after one step"),
        pytest.param([9, 8, 9, 8, 7], UNKNOWN, "NsNss", id="abort after two steps"),
        pytest.param([9, 8, 8, 9, 8, 8], DESCENDING, "NssNss", id="abort within Heun's pair"),
        pytest.param([9, 8, 7, 6, 7.5, 6.5], DESCENDING, "NsssNs", id="image to image"),
        pytest.param([9, 8, 4, 6, 5, 4], DESCENDING, "NssNss", id="image to image after an abort"),
        pytest.param([6, 9, 8, 7, 9, 8], UNKNOWN, "N?NsNs", id="abort before all was known"),
        pytest.param([6, 9, 8, 7], DESCENDING, "NNss", id="the same where it is known"),
        pytest.param([5, 9, 9, 8, 7], UNKNOWN, "N??Ns", id="two aborts before all was known"),
        pytest.param([0, 5, 0, 1, 2, 3], UNKNOWN, "N?N?ss", id="an abort, then ascending"),
        pytest.param([9, 8, 9, 8, 7, 6, 9, 8, 7, 6], UNKNOWN, "NsNsssNsss", id="to its end"),
        pytest.param([9, 8, 7, 9, 8, 9, 8, 7, 6, 5], UNKNOWN, "NssNsNssss", id="two aborts"),
        pytest.param([9, 9, 8, 8, 7, 7, 9, 8], DESCENDING, "NNssssNs", id="two in lockstep"),
        pytest.param([9, 8, 7, 9, 8, 7, 6, 6, 5], DESCENDING, "NssNsssss", id="in step from 6"),
        pytest.param([9, 8, 7, 9, 8, 8, 7, 7, 6], DESCENDING, "NssNsssss", id="Heun on an abort"),
        pytest.param([9, 8, 8, 7], DESCENDING, "Nsss", id="by design: starts on the last"),
        pytest.param([9, 8, 6, 5], DESCENDING, "Nsss", id="by design: starts below the last"),
    ],
)
def test_schedule(timesteps, direction, expected):
    assert seen(timesteps, direction) == expected


@pytest.mark.parametrize(
    ("timesteps", "direction"),
    [
        ([9, 8], UNKNOWN),
        ([9, 8, 7], DESCENDING),
        ([0, 1], UNKNOWN),
        ([0, 1, 2], ASCENDING),
        ([6, 9, 8], UNKNOWN),
        ([6, 9, 8, 7], UNKNOWN),
        ([6, 9, 8, 7, 6], DESCENDING),
    ],
)
def test_direction_is_learned_from_three_calls_of_an_image(timesteps, direction):
    model = Model()
    for t in timesteps:
        model.call((float(t), float(t)))
    assert model.known.direction == direction


def test_direction_goes_over_to_the_next_branch():
    model = Model()
    for t in (0.0, 1.0, 2.0):
        model.call((t, t))
    model.trajectory = Trajectory()
    assert [model.call((t, t)) for t in (0.0, 1.0, 0.0)] == ["new", "step", "new"]


@pytest.mark.parametrize(
    "timesteps",
    [
        pytest.param([0, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2], id="ascending, after one of two steps"),
        pytest.param([5, 9, 9, 8, 7, 6, 5, 4], id="descending, after two aborts"),
    ],
)
def test_a_direction_taken_wrong_at_first_is_put_right(timesteps):
    """Whatever the first calls were taken for, the last ones of a steady schedule are steps."""
    assert seen(timesteps).endswith("ss")


def test_a_repeat_of_an_unsure_call_is_not_sure_either():
    """An abort, an abort, an image: its first call must not reuse what the second abort left."""
    assert seen([5, 9, 9]) == "N??"


def test_per_token_timesteps_with_zeros_in_front():
    """Image-to-video keeps its first frame at 0 for ever: (max, sum) of [0, 0, t, t, t, t]."""
    model = Model()
    calls = [model.call((t, 4 * t)) for t in (999.0, 700.0, 300.0, 999.0, 700.0)]
    assert calls == ["new", "step", "step", "new", "step"]


def test_a_maximum_that_stands_still_leaves_the_sum():
    """[9, 9], [9, 6], [9, 3]: one token keeps its noise level."""
    model = Model()
    calls = [model.call((9.0, 9.0 + t)) for t in (9.0, 6.0, 3.0, 9.0)]
    assert calls == ["new", "step", "step", "new"]


@pytest.mark.parametrize("is_guidance_first", [False, True])
def test_constant_guidance_beside_the_timestep(is_guidance_first):
    model = Model()
    clocks = [(t, 2 * t, 3.5, 7.0) for t in (999.0, 500.0, 500.0, 999.0)]
    if is_guidance_first:
        clocks = [(*clock[2:], *clock[:2]) for clock in clocks]
    assert [model.call(clock) for clock in clocks] == ["new", "step", "step", "new"]


def test_integer_timesteps():
    model = Model()
    calls = [model.call((t, 2 * t)) for t in (999, 749, 749, 249, 999)]
    assert calls == ["new", "step", "step", "step", "new"]


def test_another_shape_is_a_new_image_wherever_the_clock_stands():
    model = Model(DESCENDING)
    shapes = [SHAPE, SHAPE, OTHER_SHAPE, OTHER_SHAPE, SHAPE]
    calls = [model.call((9.0 - i, 9.0), shape) for i, shape in enumerate(shapes)]
    assert [call == "new" for call in calls] == [True, False, True, False, True]


def test_without_a_clock_every_call_is_the_next_step():
    model = Model()
    assert [model.call(None) for _ in range(4)] == ["new", "step", "step", "step"]
    assert model.trajectory.num_calls == 4
    assert model.call(None, OTHER_SHAPE) == "new"


def test_a_clock_that_is_not_read_for_a_while_is_remembered():
    model = Model(DESCENDING)
    calls = [model.call(c) for c in ((9.0, 9.0), None, (8.0, 8.0), None, (9.0, 9.0))]
    assert calls == ["new", "step", "step", "step", "new"]


def test_a_clock_that_is_read_late_is_a_step():
    model = Model(DESCENDING)
    assert [model.call(c) for c in (None, (8.0, 8.0), (9.0, 9.0))] == ["new", "step", "new"]


def expected_starts(timesteps: Sequence[int]) -> list[bool]:
    """Of a descending schedule, said in another way: an image begins with the first call, with one
    above the last, and with one like the last where that is all of the image so far."""
    starts: list[bool] = []
    for i, t in enumerate(timesteps):
        above = i == 0 or t > timesteps[i - 1]
        starts.append(above or (t == timesteps[i - 1] and starts[i - 1]))
    return starts


@given(st.lists(st.integers(0, 5), max_size=20))
def test_any_sequence_of_timesteps(timesteps):
    """Also with signs turned round, which makes it an ascending schedule."""
    starts = expected_starts(timesteps)
    marks = "".join("N" if start else "s" for start in starts)
    assert seen(timesteps, DESCENDING) == marks
    assert seen([-t for t in timesteps], ASCENDING) == marks


@st.composite
def images(draw: st.DrawFn) -> list[list[int]]:
    """Images in a row: each descends from a start above the last timestep of the one before (on it
    where that one was aborted after one step), at even pace or by Heun; any of them may be aborted.
    The first has three timesteps at least, so that the direction is known after it."""
    drawn: list[list[int]] = []
    lowest = 50
    for i in range(draw(st.integers(1, 5))):
        strides = draw(st.lists(st.integers(1, 9), min_size=2 * (i == 0), max_size=5))
        image = [lowest + draw(st.integers(0, 60))]
        for stride in strides:
            image += [image[-1] - stride] * draw(st.sampled_from([1, 2]))
        drawn.append(image)
        lowest = image[-1] + (len(image) > 1)
    return drawn


@given(images(), st.sampled_from([UNKNOWN, DESCENDING]))
def test_every_start_of_an_image_is_found_and_no_other(drawn, direction):
    marks = "".join("N" + "s" * (len(image) - 1) for image in drawn)
    found = seen([t for image in drawn for t in image], direction)
    assert found == marks


NEAR, SMOOTH, FAR = 0.5, 0.95, 0.02
BARELY, ALMOST = 0.27, 0.23  # Near, and not: Euler's ancestral sampler from 999 to 888.


def seen_with_latents(calls, direction=DESCENDING) -> str:
    """What each (timestep, closeness of its latents to the last ones) is taken for."""
    model = Model(direction)
    return "".join(MARKS[model.call((float(t), float(t)), close=close)] for t, close in calls)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([(9, FAR), (8, NEAR), (7, FAR), (6, NEAR)], "NsNs", id="another image"),
        pytest.param([(9, FAR), (8, NEAR), (8, FAR), (7, NEAR)], "NsNs", id="at the same point"),
        pytest.param([(9, FAR), (8, FAR), (7, NEAR), (6, NEAR)], "Nuss", id="forgets its start"),
        pytest.param(
            [(9, FAR), (8, FAR), (7, SMOOTH), (6, NEAR)], "Nuss", id="by design: an abort"
        ),
        pytest.param([(9, FAR), (8, FAR), (7, FAR), (6, FAR)], "NuNu", id="noise at every step"),
        pytest.param([(9, FAR), (8, FAR), (9, NEAR), (8, NEAR)], "NuNs", id="starts again"),
        pytest.param([(9, FAR), (9, FAR), (8, SMOOTH)], "NNs", id="the first timestep again"),
        pytest.param(
            [(9, FAR), (8, BARELY), (7, NEAR), (9, FAR), (8, ALMOST), (7, NEAR)],
            "NssNus",
            id="a start that is barely near says nothing of other images",
        ),
        pytest.param(
            [(9, FAR), (8, NEAR), (7, NEAR), (9, FAR), (8, ALMOST), (7, NEAR)],
            "NssNNs",
            id="one that is near does",
        ),
    ],
)
def test_latents_unlike_those_of_the_step_before(calls, expected):
    assert seen_with_latents(calls) == expected
    assert seen_with_latents([(-t, close) for t, close in calls], ASCENDING) == expected


def test_another_guidance_scale_is_no_step():
    """Of the clock only the guidance moved, beside unlike latents: another image."""
    model = Model(DESCENDING)
    calls = [((9.0, 9.0, 5.0, 5.0), FAR), ((9.0, 9.0, 3.0, 3.0), FAR), ((8.0, 8.0, 3.0, 3.0), NEAR)]
    assert "".join(MARKS[model.call(clock, close=close)] for clock, close in calls) == "NNs"


def test_a_sampler_that_forgets_its_start_is_known_from_then_on():
    image = [(9, FAR), (8, FAR), (7, NEAR), (6, SMOOTH)]
    assert seen_with_latents(image * 3) == "Nuss" * 3


def test_a_smooth_start_is_known_from_then_on():
    """Then latents unlike those of a first step are a new image at once."""
    calls = [(9, FAR), (8, SMOOTH), (9, FAR), (8, FAR), (7, SMOOTH)]
    assert seen_with_latents(calls) == "NsNNs"


def shifted(num_steps: int, shift: float) -> list[float]:
    steps = [1 - i / num_steps for i in range(num_steps)]
    return [shift * s / (1 + (shift - 1) * s) for s in steps]


def taken_for_whole(clocks) -> list[int]:
    """After how many calls a schedule looks whole."""
    model = Model(DESCENDING if clocks[0] > clocks[-1] else ASCENDING)
    whole = []
    for count, clock in enumerate(clocks, 1):
        model.call((clock, 2 * clock))
        whole += [count] * looks_whole(model.trajectory)
    return whole


@pytest.mark.parametrize("num_steps", [12, 20, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_a_schedule_looks_whole_at_its_end_and_nowhere_else(num_steps, shift):
    clocks = shifted(num_steps, shift)
    assert taken_for_whole(clocks) == [num_steps]
    assert taken_for_whole([1000 * c for c in clocks]) == [num_steps]
    assert taken_for_whole([1 - c for c in clocks]) == [num_steps]
    assert taken_for_whole([1000 - 1000 * c for c in clocks]) == [num_steps]


def test_the_schedule_of_image_to_image_looks_whole_at_its_end():
    assert taken_for_whole(shifted(28, 3.0)[16:]) == [12]


def test_heun_looks_whole_at_its_last_timestep():
    clocks = shifted(20, 1.0)
    doubled = [clocks[0], *(c for c in clocks[1:] for _ in range(2))]
    assert taken_for_whole(doubled) == [38, 39]


def test_few_steps_and_one_step_never_look_whole():
    assert taken_for_whole(shifted(4, 3.0)) == []
    assert taken_for_whole([1.0, 1.0]) == []
