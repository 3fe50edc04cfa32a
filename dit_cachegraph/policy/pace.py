"""How far it is from one computed step to the next, and how that follows the errors seen: in steps,
or in the noise that they take away.

A reuse moves the picture wrongly by its error times the part of the noise range that it covers.
Where a schedule is shifted, a step covers a hundredth of the range at first and a tenth at last:

    shift 3, 28 steps     noise  1  .99  .97  ..  .33  .26  .19  .10  0

In steps the same error counts as much at both ends, and long reuses come last, where they hurt
most; in noise it counts by what it does.
"""

from typing import NamedTuple

from dit_cachegraph.policy.rule import History

SAFETY = 0.9
SMALLEST_CHANGE, LARGEST_CHANGE = 0.5, 1.5
NOISE_UNIT = 0.1  # The part of the noise range that a tolerance is of.
# What is missed grows faster than the gap, so a gap changes by less than what is allowed.
NOISE_POWER = 0.5
LEAST_FIRST = 0.02  # No image begins with less noise.
USUAL_STEPS = 28  # Where neither noise nor a number of steps is known.


class Pace(NamedTuple):
    """Steps from one computed step to the next, not rounded, and when the next is due."""

    gap: float
    next_step: int

    def is_due(self, step: int, _level: float) -> bool:
        return step >= self.next_step

    def seen_at(self, _level: float) -> "Pace":
        return self

    def __str__(self) -> str:
        return f"{self.gap:.2g} steps"

    @property
    def until(self) -> str:
        return f"next computed step is {self.next_step}"


class NoisePace(NamedTuple):
    """The part of the noise range from one computed step to the next, the noise level of the last
    one and of the last step of any kind, the step that computes whatever the noise is, and whether
    levels are counted by steps, since timesteps tell none."""

    gap: float
    computed_at: float
    level: float
    last_step: int
    is_counted: bool

    def is_due(self, step: int, level: float) -> bool:
        """True where this step is nearer to the gap's end than the next one would be, and where
        noise was added."""
        stride = self.level - level
        reached = self.computed_at - level + stride / 2
        return step >= self.last_step or reached < 0 or reached >= self.gap

    def seen_at(self, level: float) -> "NoisePace":
        return self._replace(level=level)

    def __str__(self) -> str:
        return f"{self.gap:.2g} of the noise"

    @property
    def until(self) -> str:
        return f"next computed step is near noise {max(self.computed_at - self.gap, 0.0):.2g}"


def tells_no_noise(noise: float | None) -> bool:
    """True of an image's first timestep where it is none, or is no share of the noise: a logarithm
    of it (EDM) is hardly above 1, and would be one in thousandths."""
    return noise is None or not LEAST_FIRST <= noise <= 1


def level_of(history: History, noise: float | None) -> float:
    """The step's noise level; as if levels were even where that isn't known."""
    pace = history.memory
    is_counted = pace.is_counted if isinstance(pace, NoisePace) else tells_no_noise(noise)
    if is_counted or noise is None:
        return 1 - history.step / (history.num_steps or USUAL_STEPS)
    return noise


def changed(allowed: float) -> float:
    """By what a gap changes whose error may be `allowed` times what was seen."""
    return min(max(allowed, SMALLEST_CHANGE), LARGEST_CHANGE)
