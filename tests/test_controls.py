"""Controls that enter in the middle: a replay keeps their old effect, so a jump computes, and what
stays or drifts costs nothing. Decisions and outputs against `control_oracle`, on real models."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from control_oracle import WARM_UP, ControlOracle
from models.checks import compiled_for, levels_of
from models.entry import Inputs
from models.zoo import ENTRIES
from running import relative_error, run_step

pytestmark = pytest.mark.e2e

NUM_STEPS = 8
JUMP = 5
FIRST = 2
ALWAYS = {
    "Fn_compute_blocks": FIRST,
    "residual_diff_threshold": 1.0,
    "max_warmup_steps": WARM_UP,
}
Controls = list[Tensor]
Course = Callable[[Controls, int], Controls]


@dataclass(frozen=True)
class Case:
    """An entry of the zoo, and the arguments that its controls are."""

    entry: str
    arguments: tuple[str, ...]


CASES = (
    Case("flux_controlnet", ("controlnet_block_samples", "controlnet_single_block_samples")),
    Case("sd3_controlnet", ("block_controlnet_hidden_states",)),
    Case("qwen_image_controlnet", ("controlnet_block_samples",)),
    Case("sana_controlnet", ("controlnet_block_samples",)),
)


class Run:
    """A compiled model with controls, run along any course of these."""

    def __init__(self, case: Case) -> None:
        self.case = case
        entry = next(entry for entry in ENTRIES if entry.name == case.entry)
        self.model = entry.build()
        self.compiled = compiled_for(entry, self.model)
        dc.configure(self.compiled, **ALWAYS)
        self.steps = list(entry.steps(self.model, levels_of(entry, NUM_STEPS)))
        blocks = [b for name in entry.trunk for b in self.model.get_submodule(name).children()]
        self.before, self.last = blocks[FIRST - 1], blocks[-1]
        self.base = [c for name in case.arguments for c in self.steps[0][name]]

    def inputs(self, step: int, controls: Controls) -> Inputs:
        """Kwargs of a step with these controls, in as many lists as the model has."""
        left, told = list(controls), {}
        for name in self.case.arguments:
            size = len(self.steps[0][name])
            told[name], left = type(self.steps[0][name])(left[:size]), left[size:]
        return {**self.steps[step], **told, "return_dict": False}

    def along(self, course: Course) -> list[bool]:
        """The hits of one image, each checked against the oracle."""
        dc.reset(self.compiled)
        hits = []
        with ControlOracle(self.model, self.before, self.last) as oracle:
            expected = []
            base = [control.clone() for control in self.base]
            for i in range(NUM_STEPS):
                controls = course(base, i)
                expected.append(oracle.step(self.inputs(i, controls), controls))
        base = [control.clone() for control in self.base]
        for i, (hit, output) in enumerate(expected):
            ran = run_step(self.compiled, self.inputs(i, course(base, i)))
            assert ran.hit == hit, f"step {i}: {ran.reason}"
            assert relative_error(ran.output, output) < 1e-5, f"step {i}: {ran.reason}"
            hits.append(ran.hit)
        return hits


def the_same(base: Controls, _: int) -> Controls:
    return base


def made_anew(base: Controls, _: int) -> Controls:
    return [control.clone() for control in base]


def drifting(base: Controls, step: int) -> Controls:
    return [control * (1 + 0.05 * step) for control in base]


def scaled_by(factor: float) -> Course:
    def course(base: Controls, step: int) -> Controls:
        return [control * (factor if step >= JUMP else 1.0) for control in base]

    return course


def one_of_them(base: Controls, step: int) -> Controls:
    return [*base[:-1], base[-1] * (1.5 if step >= JUMP else 1.0)]


def one_sample(base: Controls, step: int) -> Controls:
    factors = torch.tensor([1.0, 0.5 if step >= JUMP else 1.0]).reshape(-1, 1, 1)
    return [control * factors for control in base]


def switched_on(base: Controls, step: int) -> Controls:
    return [control * (step >= JUMP) for control in base]


def written_to(factor: float) -> Course:
    def course(base: Controls, step: int) -> Controls:
        return [control.mul_(factor) for control in base] if step == JUMP else base

    return course


HITS = [step >= WARM_UP for step in range(NUM_STEPS)]
BUT_THE_JUMP = [hit and step != JUMP for step, hit in enumerate(HITS)]
COURSES = {
    "the same": (the_same, HITS),
    "made anew": (made_anew, HITS),
    "drifting": (drifting, HITS),
    "more by half": (scaled_by(1.5), BUT_THE_JUMP),
    "less by half": (scaled_by(0.5), BUT_THE_JUMP),
    "less by a third": (scaled_by(0.67), HITS),
    "to zero": (scaled_by(0.0), BUT_THE_JUMP),
    "from zero": (switched_on, BUT_THE_JUMP),
    "one of them": (one_of_them, BUT_THE_JUMP),
    "one sample": (one_sample, BUT_THE_JUMP),
    "written to": (written_to(1.5), BUT_THE_JUMP),
    "written to, as it was": (written_to(1.0), HITS),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.entry)
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


class Hinted:
    """Wan VACE, whose hints are made of the control, the latents and a scale before the blocks."""

    def __init__(self) -> None:
        entry = next(entry for entry in ENTRIES if entry.name == "wan_vace")
        self.model: nn.Module = entry.build()
        self.compiled = compiled_for(entry, self.model)
        dc.configure(self.compiled, **ALWAYS)
        self.steps = list(entry.steps(self.model, levels_of(entry, NUM_STEPS)))
        self.blocks = list(self.model.get_submodule("blocks").children())
        self.hints = list(self.model.get_submodule("vace_blocks").children())

    def given(self) -> tuple[Tensor, Tensor]:
        return self.steps[0]["control_hidden_states"].clone(), torch.ones(len(self.hints))

    def inputs(self, step: int, control: Tensor, scale: Tensor) -> Inputs:
        told = {"control_hidden_states": control, "control_hidden_states_scale": scale}
        return {**self.steps[step], **told}

    def along(self, write: Callable[[Tensor, Tensor], object]) -> list[bool]:
        """The hits of an image whose control or scale is written to, checked with the oracle."""
        dc.reset(self.compiled)
        control, scale = self.given()
        with ControlOracle(
            self.model, self.blocks[FIRST - 1], self.blocks[-1], self.hints
        ) as oracle:
            expected = []
            for i in range(NUM_STEPS):
                if i == JUMP:
                    write(control, scale)
                expected.append(oracle.step(self.inputs(i, control, scale), list(scale)))
        control, scale = self.given()
        hits = []
        for i, (hit, output) in enumerate(expected):
            if i == JUMP:
                write(control, scale)
            ran = run_step(self.compiled, self.inputs(i, control, scale))
            assert ran.hit == hit, f"step {i}: {ran.reason}"
            assert relative_error(ran.output, output) < 1e-5, f"step {i}: {ran.reason}"
            hits.append(ran.hit)
        return hits


def test_hints_that_are_made_before_the_blocks(host_copies: list[int]) -> None:
    run = Hinted()
    assert run.along(lambda control, scale: scale.mul_(1.5)) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale.zero_()) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale[1].mul_(0.5)) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale.mul_(1.1)) == HITS
    assert run.along(lambda control, scale: control.mul_(1.0)) == HITS
    host_copies.clear()
    assert run.along(lambda control, scale: None) == HITS
    # They follow the latents at each step, and that is what the rule looks at.
    assert len(host_copies) == NUM_STEPS and len(set(host_copies)) == 1


def test_another_scale_object_is_another_request() -> None:
    run = Hinted()
    control, scale = run.given()
    ran = [
        run_step(run.compiled, run.inputs(i, control, half if i >= JUMP else scale))
        for half in [0.5 * scale]
        for i in range(NUM_STEPS)
    ]
    assert [step.hit for step in ran] == [*HITS[:JUMP], False, False, True]
