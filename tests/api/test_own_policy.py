"""A rule and a predictor from outside of the package, as `docs/policies.md` shows them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Decision, History, Need, Observation, Rule, Span, StepResult
from support.running import compile_cached, run_all
from support.tiny_models import WAN, trajectory


@dataclass(frozen=True)
class Growing(Rule):
    """Reuses one step, computes one, reuses two, computes one, and so on."""

    name: ClassVar[str] = "growing"
    first_block: int = 1

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        return (Span(self.first_block, sum(list_sizes)),)

    def decide(self, history: History, observation: Observation) -> Decision:
        num_allowed = history.memory if isinstance(history.memory, int) else 0
        if history.num_hits_in_a_row >= num_allowed:
            return Decision(False, f"after {num_allowed} reused steps")
        return Decision(True, f"hit, {num_allowed} are allowed")

    def remember(self, history: History, result: StepResult) -> object:
        num_allowed = history.memory if isinstance(history.memory, int) else 0
        return num_allowed if result.decisions[0].hit else num_allowed + 1


@dataclass(frozen=True)
class Fading(Predictor):
    """Replays the last effect, less by `rate` for each step since."""

    name: ClassVar[str] = "fading"
    rate: float = 0.1

    def weights(self, steps: Sequence[int], step: int) -> tuple[float, ...]:
        return (*[0.0] * (len(steps) - 1), 1.0 - self.rate * (step - steps[-1]))


def test_they_run_like_our_own():
    model = WAN.build(4)
    compiled = compile_cached(model, rule=Growing(first_block=2), predictor=Fading())
    inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
    steps = list(trajectory(WAN, inputs, 9))
    hits = [ran.hit for ran in run_all(compiled, steps)]
    assert hits == [False, True, False, True, True, False, True, True, True]
    assert dc.summary(compiled).graphs[0].regions == ((2, 4),)
    with pytest.raises(dc.InvalidConfig, match="the blocks 5 to 3 can't be a region"):
        dc.configure(compiled, rule=Growing(first_block=5))


def test_the_bases_say_what_is_missing():
    class Undecided(Rule):
        name = "undecided"

        def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
            return (Span(0, sum(list_sizes)),)

    with pytest.raises(TypeError, match="abstract method .?decide"):
        Undecided()
    with pytest.raises(TypeError, match="abstract method .?weights"):
        type("Weightless", (Predictor,), {"name": "weightless"})()


def test_what_looks_like_a_rule_and_is_none_is_refused():
    """By its base, not by its methods."""
    alike = type("Alike", (), dict(vars(Growing)))
    with pytest.raises(dc.InvalidConfig, match="rule must be one of .*, or a rule: Alike"):
        dc.configure(WAN.build(2), rule=object.__new__(alike))


@torch.no_grad()
def test_what_is_replayed_fades():
    """The streams around the region, watched from outside: what a hit adds is 0.9 of what the
    computed step before it added."""
    model = WAN.build(4)
    inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=4, seed=0)
    first, second = trajectory(WAN, inputs, 2)
    entered, left = [], []
    model.blocks[2].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model.blocks[3].register_forward_hook(lambda _, args, out: left.append(out))
    for kwargs in (first, second):
        model(**kwargs)
    model.blocks[2]._forward_pre_hooks.clear()
    model.blocks[3]._forward_hooks.clear()
    expected = entered[1] + 0.9 * (left[0] - entered[0])
    seen = []
    model.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    compiled = compile_cached(model, rule=Growing(first_block=2), predictor=Fading())
    run_all(compiled, [first, second])
    torch.testing.assert_close(seen[-1], expected.float(), atol=1e-5, rtol=1e-5)
