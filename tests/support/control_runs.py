"""Runs of real models with controls, and courses that controls take over an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dit_cachegraph as dc
from oracles.control import WARM_UP, ControlOracle
from support.running import relative_error, run_step
from zoo.checks import compiled_entry, levels_of
from zoo.entries import ENTRIES
from zoo.entry import Inputs

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
        self.compiled = compiled_entry(entry, self.model)
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
