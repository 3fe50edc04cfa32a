"""The rules that compare nothing, on synthetic images: each step against what the rule's text says,
over hundreds of settings."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cachegraph.policy.pace import NoisePace
from dit_cachegraph.policy.rule import Decision, History, Observation, Rule, StepResult
from dit_cachegraph.policy.rules.error_control import ErrorControl
from dit_cachegraph.policy.rules.even import EvenSchedule
from dit_cachegraph.policy.rules.fixed import FixedSchedule
from dit_cachegraph.policy.rules.spread import SpreadSchedule

TRACES = settings(max_examples=250)
num_steps = st.integers(1, 40)


def play(
    rule: Rule, num: int, error_of=lambda step, last: None, levels=None, told=None
) -> list[bool]:
    """What the driver makes of a rule's answers; a computed step's error is that of a reuse at it
    of what the last computed one left."""
    history, last, hits = History(), None, []
    for step in range(num):
        history = history.seen_by(rule, told)
        seen = Observation(noise=None if levels is None else levels[step])
        reason = rule.why_compute(history, (), None) or ("new image" if last is None else None)
        decision = Decision(False, reason) if reason else rule.decide(history, seen)
        error = None
        if not decision.hit:
            error = None if last is None else error_of(step, last)
            last = step
        result = StepResult((decision,), seen, error)
        history = history.after([decision], error)._replace(memory=rule.remember(history, result))
        hits.append(decision.hit)
    return hits


@TRACES
@given(num_steps, st.integers(1, 7), st.integers(1, 9))
def test_an_even_schedule(num, every, warmup):
    computed = {*range(warmup), *range(warmup - 1, num, every)}
    hits = play(EvenSchedule(every=every, max_warmup_steps=warmup), num)
    assert hits == [step not in computed for step in range(num)]


@pytest.mark.parametrize(
    ("share", "num", "computed"),
    [
        (0.36, 28, [0, 2, 4, 7, 10, 13, 17, 21, 25, 27]),
        (0.36, 50, [0, 2, *range(4, 44, 3), 47, 49]),
        (0.36, 20, [0, 3, 6, 9, 13, 17, 19]),  # Another short gap would leave too long ones.
        (0.36, 14, [0, 3, 7, 11, 13]),
        (0.36, 8, [0, 3, 7]),  # A short gap would, and one of seven is too long.
        (0.5, 28, [0, 1, *range(2, 15, 2), 17, 20, 23, 26, 27]),
        (1.0, 5, [0, 1, 2, 3, 4]),
        (0.36, 2, [0, 1]),
        (0.01, 1, [0]),
    ],
)
def test_a_spread_schedule(share, num, computed):
    hits = play(SpreadSchedule(compute_share=share), num, told=num)
    assert [step for step in range(num) if not hits[step]] == computed


@TRACES
@given(st.integers(1, 120), st.floats(0.02, 1.0))
def test_a_spread_schedule_keeps_its_share_and_its_gaps(num, share):
    hits = play(SpreadSchedule(compute_share=share), num, told=num)
    computed = [step for step in range(num) if not hits[step]]
    gaps = [b - a for a, b in zip(computed, computed[1:], strict=False)]
    longest = math.ceil(1 / share - 1e-9) + 1
    assert computed[0] == 0 and computed[-1] == num - 1
    assert len(computed) <= max(share * num + 1e-6, 1 + math.ceil((num - 1) / longest))
    assert len(computed) > share * num - 1 - 1e-6
    assert all(gap <= longest for gap in gaps)
    between = gaps[2:-1]
    assert between == sorted(between)
    assert max(between, default=1) - min(between, default=1) <= 1


@TRACES
@given(num_steps, st.floats(0.02, 1.0))
def test_a_spread_schedule_that_is_not_told_is_even(num, share):
    every = math.ceil(1 / share - 1e-9)
    assert play(SpreadSchedule(compute_share=share), num) == [i % every != 0 for i in range(num)]


def test_a_spread_schedule_computes_past_what_it_was_told():
    assert play(SpreadSchedule(), 7, told=4) == [False, True, True, False, False, False, False]


@TRACES
@given(num_steps, st.lists(st.integers(0, 1), min_size=1, max_size=40))
def test_a_fixed_schedule(num, mask):
    """The first step has nothing to reuse; steps past the end compute."""
    expected = [0 < i < len(mask) and mask[i] == 0 for i in range(num)]
    assert play(FixedSchedule(compute_mask=mask), num) == expected


@TRACES
@given(
    num_steps,
    st.floats(0, 1),
    st.integers(1, 10),
    st.integers(1, 4),
    st.lists(st.floats(1e-4, 0.5), min_size=40, max_size=40),
    st.floats(0, 2),
)
def test_error_control(num, tolerance, max_gap, first, bends, power):
    """The error of a reuse over a gap is the bend of the path there times a power of the gap: the
    next gap is this one times 0.9 tolerance / error, at most half as much again and no less than
    half, and always from 1 to `max_gap`."""

    def error_of(step, last):
        return bends[step] * (step - last) ** power

    computed, last, gap, due = [], None, 1.0, 0
    for step in range(num):
        if step < due:
            continue
        computed.append(step)
        if step < first or last is None:
            gap = 1.0
        else:
            gap *= min(max(0.9 * tolerance / error_of(step, last), 0.5), 1.5)
            gap = min(max(gap, 1.0), max_gap)
        last, due = step, step + round(gap)
    rule = ErrorControl(error_tolerance=tolerance, max_gap=max_gap, min_error_steps=first)
    hits = play(rule, num, error_of)
    assert [step for step in range(num) if not hits[step]] == computed


@pytest.mark.parametrize("bend", [1e-6, 10.0])
def test_a_smooth_path_is_reused_and_a_bent_one_is_not(bend):
    hits = play(ErrorControl(error_tolerance=0.1), 28, lambda step, last: bend * (step - last))
    assert sum(hits) == (0 if bend > 1 else 20)


def shifted(shift, num):
    """Noise levels of a shifted schedule, the last of them above 0."""
    even = [1 - step / num for step in range(num)]
    return [shift * level / (1 + (shift - 1) * level) for level in even]


@TRACES
@given(
    num_steps,
    st.floats(1, 8),
    st.floats(0, 1),
    st.integers(1, 10),
    st.integers(1, 4),
    st.lists(st.floats(1e-4, 0.5), min_size=40, max_size=40),
)
def test_error_control_over_noise(num, shift, tolerance, max_gap, first, bends):
    """The gap is a part of the noise range, and an error counts times the part that it is over, in
    tenths. A step computes where it is nearer to the end of the gap than the next one would be,
    if that took away as much noise as this one."""
    levels = shifted(shift, num)
    computed, gap = [], 0.0
    for step, level in enumerate(levels):
        if computed:
            last = computed[-1]
            distance, stride = levels[last] - level, levels[step - 1] - level
            if step - last < max_gap and distance + stride / 2 < gap:
                continue
            missed = bends[step] * distance / 0.1
            if step < first:
                gap = 0.0
            else:
                gap = max(gap, distance) * min(max((0.9 * tolerance / missed) ** 0.5, 0.5), 1.5)
        computed.append(step)
    rule = ErrorControl(
        error_tolerance=tolerance, max_gap=max_gap, min_error_steps=first, paced_over="noise"
    )
    hits = play(rule, num, lambda step, last: bends[step], levels)
    assert [step for step in range(num) if not hits[step]] == computed


@pytest.mark.parametrize(
    ("paced_over", "tolerance", "num_computed"), [("steps", 0.1, 1), ("noise", 0.04, 4)]
)
def test_a_shifted_schedule_is_computed_where_its_steps_are_long(
    paced_over, tolerance, num_computed
):
    """With the same error a step everywhere: of the last quarter of the steps, which takes away
    more than half of the noise, steps compute one and noise computes half."""
    rule = ErrorControl(error_tolerance=tolerance, paced_over=paced_over)
    hits = play(rule, 28, lambda step, last: 0.02 * (step - last), shifted(3.0, 28))
    assert hits[21:].count(False) == num_computed


@pytest.mark.parametrize(
    "levels",
    [
        # EDM's quarter of a logarithm, which is taken for thousandths where it begins above 1.
        [0.0011 - 0.0001 * step for step in range(28)],
        [1.1 + step / 28 for step in range(28)],
        [-0.1 - step / 28 for step in range(28)],
    ],
    ids=["logarithm", "above", "below"],
)
def test_timesteps_that_tell_no_noise_are_taken_for_even(levels):
    rule = ErrorControl(error_tolerance=0.06, paced_over="noise")
    even = [1 - step / 28 for step in range(28)]
    for bend in (0.001, 0.02, 1.0):
        error_of = lambda step, last, bend=bend: bend * (step - last)  # noqa: E731
        assert play(rule, 28, error_of, levels) == play(rule, 28, error_of, even)


def test_where_noise_is_added_a_step_computes():
    pace = NoisePace(gap=0.3, computed_at=0.6, level=0.5, last_step=9, is_counted=False)
    # The neighbours: a little less noise, the same once more as by Heun, and the end of the gap.
    assert [pace.is_due(5, level) for level in (0.45, 0.5, 0.35)] == [False, False, True]
    assert pace.is_due(5, 0.75) and pace.is_due(9, 0.45)


@pytest.mark.parametrize("paced_over", ["steps", "noise"])
def test_a_tolerance_of_nothing_reuses_nothing(paced_over):
    """Nor where a step takes away a tenth of what the one before it did, or nothing, as by Heun."""
    levels = [1.0, 0.9, 0.9, 0.5, 0.5, 0.46, 0.456, 0.456]
    rule = ErrorControl(error_tolerance=0.0, paced_over=paced_over)
    assert not any(play(rule, len(levels), lambda step, last: 0.01, levels))


def test_without_a_timestep_levels_are_taken_for_even():
    rule = ErrorControl(error_tolerance=0.1, paced_over="noise")
    bends = lambda step, last: 0.01 * (step - last)  # noqa: E731
    even = [1 - step / 28 for step in range(28)]
    assert play(rule, 28, bends) == play(rule, 28, bends, even)
    assert any(play(rule, 28, bends))
