"""Controls that are made before the blocks: Wan VACE's hints, of the control, the latents and a
scale. Decisions and outputs against `control_oracle`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dit_cachegraph as dc
from oracles.control import ControlOracle
from support.control_runs import ALWAYS, BUT_THE_JUMP, FIRST, HITS, JUMP, NUM_STEPS
from support.running import relative_error, run_step
from zoo.checks import compiled_entry, levels_of
from zoo.entries import ENTRIES
from zoo.entry import Inputs

pytestmark = pytest.mark.e2e


class Hinted:
    """A compiled Wan VACE."""

    def __init__(self) -> None:
        entry = next(entry for entry in ENTRIES if entry.name == "wan_vace")
        self.model: nn.Module = entry.build()
        self.compiled = compiled_entry(entry, self.model)
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


@pytest.fixture(scope="module")
def run() -> Hinted:
    return Hinted()


def test_hints_that_are_made_before_the_blocks(run: Hinted, host_copies: list[int]) -> None:
    assert run.along(lambda control, scale: scale.mul_(1.5)) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale.zero_()) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale[1].mul_(0.5)) == BUT_THE_JUMP
    assert run.along(lambda control, scale: scale.mul_(1.1)) == HITS
    assert run.along(lambda control, scale: control.mul_(1.0)) == HITS
    host_copies.clear()
    assert run.along(lambda control, scale: None) == HITS
    # They follow the latents at each step, and that is what the rule looks at.
    assert len(host_copies) == NUM_STEPS and len(set(host_copies)) == 1


def test_another_scale_object_is_another_request(run: Hinted) -> None:
    dc.reset(run.compiled)
    control, scale = run.given()
    ran = [
        run_step(run.compiled, run.inputs(i, control, half if i >= JUMP else scale))
        for half in [0.5 * scale]
        for i in range(NUM_STEPS)
    ]
    assert [step.hit for step in ran] == [*HITS[:JUMP], False, False, True]
