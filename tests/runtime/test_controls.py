"""Controls that enter in the middle: a replay keeps their old effect, so a jump computes, and what
stays or drifts costs nothing. Decisions and outputs against `control_oracle`, on real models."""

from dataclasses import dataclass

import pytest
import torch

import dit_cachegraph as dc
from oracles.control import ControlOracle
from support.control_runs import (
    ALWAYS,
    BUT_THE_JUMP,
    CASES,
    COURSES,
    HITS,
    JUMP,
    NUM_STEPS,
    Case,
    Controls,
    Course,
    Run,
    made_anew,
    scaled_by,
    the_same,
    written_to,
)
from support.running import relative_error, run_step

pytestmark = pytest.mark.e2e

FAST = CASES[:2]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.entry, marks=[] if c in FAST else pytest.mark.slow) for c in CASES],
)
def test_a_jump_computes_and_a_drift_does_not(case: Case) -> None:
    run = Run(case)
    for name, (course, hits) in COURSES.items():
        assert run.along(course) == hits, name


ANYTHING = 1e9
STATIC = {
    "steps_computation_mask": [int(not hit) for hit in HITS],
    "steps_computation_policy": "static",
}
RULES: dict[str, dict[str, object]] = {
    "dbcache, static": {**ALWAYS, **STATIC},
    "dbprune": {"rule": "dbprune", **ALWAYS},
    "even": {"rule": "even", "every": 5},
    "fixed": {"rule": "fixed", "compute_mask": STATIC["steps_computation_mask"]},
    "error_control": {"rule": "error_control", "error_tolerance": ANYTHING},
    "magcache": {
        "rule": "magcache",
        "mag_ratios": (1.0,) * NUM_STEPS,
        "magcache_threshold": ANYTHING,
        "max_skip_steps": NUM_STEPS,
    },
    "easycache": {"rule": "easycache", "easycache_threshold": ANYTHING},
    "teacache": {"rule": "teacache", "teacache_threshold": ANYTHING},
}
LOOKING = {"easycache", "teacache"}  # The others read nothing before they decide.


@dataclass(frozen=True)
class Step:
    hit: bool
    reason: str
    num_copies: int
    num_read: int


def ran_under(run: Run, rule: str, course: Course, copies: list[int]) -> list[Step]:
    """The steps of one named request."""
    dc.reset(run.compiled)
    dc.configure(run.compiled, **RULES[rule], num_inference_steps=NUM_STEPS)
    base, steps = [control.clone() for control in run.base], []
    with dc.request("one"):
        for i in range(NUM_STEPS):
            copies.clear()
            ran = run_step(run.compiled, run.inputs(i, course(base, i)))
            steps.append(Step(ran.hit, ran.reason, len(copies), sum(copies)))
    return steps


def jump_at(jump: int) -> Course:
    def course(base: Controls, step: int) -> Controls:
        return [control.mul_(0.5) for control in base] if step == jump else base

    return course


def test_under_any_rule_a_jump_computes_and_only_what_changed_is_read(
    host_copies: list[int],
) -> None:
    run = Run(CASES[0])
    num_controls, batch = len(run.base), len(run.base[0])
    for rule in RULES:
        same = ran_under(run, rule, the_same, host_copies)
        jump = next(i for i in range(NUM_STEPS) if i > 2 and same[i].hit)
        jumped = ran_under(run, rule, jump_at(jump), host_copies)
        assert jumped[:jump] == same[:jump], rule
        assert (jumped[jump].hit, jumped[jump].reason) == (False, "a control changed by 50%"), rule
        assert any(step.hit for step in jumped[jump + 1 :]), rule
        anew = ran_under(run, rule, made_anew, host_copies)
        for i, (one, other) in enumerate(zip(same, anew, strict=True)):
            assert one.hit == other.hit, f"{rule}, step {i}: {one.reason}; {other.reason}"
            # Two numbers a control and sample, in the copy that is made anyway if one is.
            of_controls = 2 * batch * num_controls if i > 0 else 0
            assert other.num_read - one.num_read == of_controls, f"{rule}, step {i}"
            own_copies = int(i > 0 and rule not in LOOKING)
            assert other.num_copies - one.num_copies == own_copies, f"{rule}, step {i}"
            is_blind = rule not in LOOKING and (one.hit or rule != "error_control")
            assert one.num_copies == 0 or not is_blind, f"{rule}, step {i}"


def test_a_forecast_begins_anew_after_a_jump() -> None:
    """Else it would go on in the direction of the jump."""
    run = Run(CASES[0])
    dc.configure(run.compiled, taylorseer_order=1)
    base = [control.clone() for control in run.base]
    with ControlOracle(run.model, run.before, run.last) as oracle:
        expected = [
            oracle.step(run.inputs(i, controls), controls)
            for i in range(NUM_STEPS)
            for controls in [scaled_by(1.5)(base, i)]
        ]
    ran = [run_step(run.compiled, run.inputs(i, scaled_by(1.5)(base, i))) for i in range(NUM_STEPS)]
    assert [step.hit for step in ran] == BUT_THE_JUMP
    errors = [
        relative_error(step.output, out) for step, (_, out) in zip(ran, expected, strict=True)
    ]
    assert max(errors[JUMP:]) < 1e-5
    assert max(errors[:JUMP]) > 1e-4  # Before it, the forecast is no replay.


@pytest.mark.parametrize("begins", [True, False], ids=["switched on", "switched off"])
def test_a_control_that_is_none_for_a_part_of_the_image(begins: bool) -> None:
    run = Run(CASES[1])
    (name,) = run.case.arguments
    ran = []
    for i in range(NUM_STEPS):
        is_on = (i >= JUMP) == begins
        ran.append(
            run_step(run.compiled, {**run.inputs(i, run.base), **({} if is_on else {name: None})})
        )
    assert [step.hit for step in ran] == BUT_THE_JUMP
    assert ran[JUMP].reason == "the graph changed"


def test_in_inference_mode_nobody_counts_writes_so_that_controls_are_read() -> None:
    run = Run(CASES[0])
    with torch.inference_mode():
        base = [control.clone() for control in run.base]
        for factor, hits in ((1.5, BUT_THE_JUMP), (1.0, HITS)):
            dc.reset(run.compiled)
            course = written_to(factor)
            ran = [run_step(run.compiled, run.inputs(i, course(base, i))) for i in range(NUM_STEPS)]
            assert [step.hit for step in ran] == hits
