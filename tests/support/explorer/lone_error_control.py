"""Error control, as the passes of one image do it alone: the steps to the next computed one follow
from what a reuse would have missed at the last.

All passes of a step do as its first one did. That computes if any of them is due.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from support.explorer.dit import NUM_BLOCKS, ExploredDiT
from support.explorer.lone_image import (
    TOO_CLOSE,
    Inputs,
    LoneImage,
    Verdict,
    run_blocks,
    worst_ratio,
)

ALL_BLOCKS = range(NUM_BLOCKS)
SAFETY, LEAST, MOST = 0.9, 0.5, 1.5


@dataclass(frozen=True)
class ErrorControlRules:
    """The settings of one step, by the field's names."""

    enabled: bool = True
    error_tolerance: float = 1.0
    max_gap: int = 4
    min_error_steps: int = 1

    @property
    def region(self) -> range:
        return ALL_BLOCKS


class _Pace(NamedTuple):
    """Steps from one computed step to the next, not rounded, and when that is due: where rounding
    decides, at either of two steps. `is_exact`: no measured number is in it."""

    gap: float
    earliest: int
    latest: int
    is_exact: bool


@dataclass
class _Half:
    """A step that is decided on, and not done."""

    model: ExploredDiT
    inputs: Inputs
    temb: Tensor
    start: Tensor
    rules: ErrorControlRules


class LoneErrorControl(LoneImage):
    """Its passes compute and reuse together."""

    def __init__(self, passes: list["LoneErrorControl"]) -> None:
        super().__init__(passes)
        self._was_hit = False
        self._pace = _every_step(0)
        self._kept: Tensor | None = None
        self._half: _Half | None = None

    def look(self, model: ExploredDiT, inputs: Inputs, rules: ErrorControlRules) -> Verdict:
        start, temb = model.enter(inputs["hidden_states"], inputs["timestep"], inputs["guidance"])
        self._half = _Half(model, inputs, temb, start, rules)
        return self._decide(rules)

    def may_replay(self) -> bool:
        half, kept = self._half, self._kept
        assert half is not None
        return kept is not None and kept.shape == half.start.shape

    def give_up(self) -> None:
        self._half = None

    def settle(self, hit: bool, is_measured: bool) -> Tensor:
        half, kept, may_replay = self._half, self._kept, self.may_replay()
        assert half is not None
        self._half, self.error, self._was_hit = None, None, hit
        if hit:
            assert kept is not None
            end = half.start + kept
        else:
            end = run_blocks(half.model, ALL_BLOCKS, half.start, half.temb, half.inputs)
            if half.rules.enabled and may_replay:
                assert kept is not None
                self.error = worst_ratio(half.start + kept - end, end)
            self._kept = end - half.start if half.rules.enabled else None
            self._pace = self._next_pace(half.rules, self.error if is_measured else None)
        self.step += 1
        return half.model.proj_out(end)

    def _decide(self, rules: ErrorControlRules) -> Verdict:
        if not rules.enabled:
            return Verdict(False, "disabled")
        if not self.may_replay():
            return Verdict(False, "nothing kept")
        for other in self.passes:
            if other.step == self.step + 1:
                return Verdict(other._was_hit, "as another pass")
        paces = [other._pace for other in self.passes if other.step == self.step]
        earliest, latest = min(p.earliest for p in paces), min(p.latest for p in paces)
        is_close = earliest <= self.step < latest
        return Verdict(self.step < latest, f"due at {latest}", is_close=is_close)

    def _next_pace(self, rules: ErrorControlRules, error: float | None) -> _Pace:
        if error is None or self.step < rules.min_error_steps:
            return _every_step(self.step)
        allowed = SAFETY * rules.error_tolerance / max(error, 1e-12)
        wanted = self._pace.gap * min(max(allowed, LEAST), MOST)
        gap = min(max(wanted, 1.0), float(rules.max_gap))
        is_change_exact = self._pace.is_exact and _is_outside(allowed, LEAST, MOST)
        is_exact = is_change_exact or _is_outside(wanted, 1.0, rules.max_gap)
        spread = 0.0 if is_exact else TOO_CLOSE
        earliest, latest = (round(gap * share) for share in (1 - spread, 1 + spread))
        return _Pace(gap, self.step + earliest, self.step + latest, is_exact)


def _every_step(step: int) -> _Pace:
    return _Pace(1.0, step + 1, step + 1, is_exact=True)


def _is_outside(number: float, least: float, most: float) -> bool:
    """Whether rounding can't bring the number between its bounds."""
    return number < least * (1 - TOO_CLOSE) or number > most * (1 + TOO_CLOSE)
