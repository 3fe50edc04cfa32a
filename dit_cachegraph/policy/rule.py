"""What a rule sees and says: plain frozen data, and the protocol that a rule fulfils.

Named tuples, since several are made at each step and a frozen dataclass takes three times as long.
"""

from typing import NamedTuple, Protocol


class History(NamedTuple):
    """What happened so far in one image of one branch. `step` is the index of the current step."""

    step: int = 0
    num_hits: int = 0
    num_hits_in_a_row: int = 0
    accumulated_diff: float = 0.0

    def after(self, decision: "Decision") -> "History":
        """The history that the next step sees."""
        recorded = decision.diff if decision.is_recorded and decision.diff is not None else 0.0
        return History(
            self.step + 1,
            self.num_hits + decision.hit,
            self.num_hits_in_a_row + 1 if decision.hit else 0,
            self.accumulated_diff + max(recorded, 0.0),
        )


class Observation(NamedTuple):
    """What a step saw: per sample `sum|r - p|` and `sum|p|` of the probe, or why there is nothing
    to compare with or to reuse."""

    moved: tuple[float, ...] = ()
    size: tuple[float, ...] = ()
    nothing_kept: str | None = None


class Decision(NamedTuple):
    """Reuse or compute, and why. `is_recorded`: the diff counts towards an accumulated bound."""

    hit: bool
    reason: str
    diff: float | None = None
    is_recorded: bool = False


class Rule(Protocol):
    """When to reuse. A rule is a frozen dataclass: its fields are its options."""

    @property
    def needs_diff(self) -> bool:
        """False for a schedule: then nothing but the timestep is read from the device."""
        ...

    @property
    def threshold(self) -> float | None:
        """What a diff is compared with, for the report; None where nothing is compared."""
        ...

    def region(self, num_blocks: int) -> tuple[int, int]:
        """The blocks `start..stop-1` that a hit skips. Raises `InvalidConfig` if they can't be."""
        ...

    def decide(self, history: History, observation: Observation) -> Decision:
        """What to do at this step."""
        ...
