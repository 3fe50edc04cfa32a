"""What the driver launches, waits for and moves at a step: the table of `docs/performance.md`."""

import pytest

from support.launch_modes import MODES, steady_steps

# (kernels, copies that are waited for, streams read and written) of a hit and of a computed step.
ROWS = {
    "default preset": ((2, 1, 4), (3, 1, 5)),
    "over steps, named, so many steps": ((1, 0, 4), (2, 0, 5)),
    "DBCache F1B0, replay": ((4, 1, 6), (5, 1, 9)),
    "DBCache F1B0, order 1": ((4, 1, 7), (5, 1, 9)),
    "static mask, named": ((1, 0, 3), (1, 0, 3)),
}


@pytest.mark.parametrize("name", MODES)
def test_kernels_waits_and_streams_of_a_step(name, monkeypatch):
    found = steady_steps(MODES[name], monkeypatch)
    assert {step.hit for step, _ in found} == {True, False}
    for step, counted in found:
        assert counted.row == ROWS[name][not step.hit], (step, counted.launches)


def test_an_error_is_waited_for_by_itself_where_nothing_else_is(monkeypatch):
    """By the step after the computed one, and never by that itself."""
    named, plain = "over steps, named, so many steps", "default preset"
    steps = steady_steps(MODES[named], monkeypatch)
    after_computed = [not step.hit for step, _ in steps[:-1]]
    assert [counted.num_late for _, counted in steps[1:]] == list(map(int, after_computed))
    assert not any(counted.num_late for _, counted in steady_steps(MODES[plain], monkeypatch))
