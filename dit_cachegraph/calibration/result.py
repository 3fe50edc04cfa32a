"""What a calibration found: settings to load, with what was measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate over the runs that it was tried on: the share of block work that ran, the mean
    PSNR in dB against the uncached pictures, and its settings."""

    share: float
    psnr_db: float
    settings: Mapping[str, object]

    def __str__(self) -> str:
        return f"{self.psnr_db:.1f} dB at {self.share:.0%} of the block work"


class CalibratedConfig(Mapping[str, object]):
    """The settings of the best candidate: `configure(model, **config)`.

    `holdout` is what was measured on pictures that the search has not seen, `frontier` every
    candidate that was tried, `promise` what was asked for, `is_reached` whether the holdout kept
    it. `run_cost` is what the search took, in uncached runs.
    """

    def __init__(
        self,
        best: Point,
        holdout: Point,
        frontier: Sequence[Point],
        promise: str,
        *,
        is_reached: bool,
        run_cost: float,
    ) -> None:
        self._settings = MappingProxyType(dict(best.settings))
        self.best, self.holdout = best, holdout
        self.frontier = tuple(frontier)
        self.promise, self.is_reached, self.run_cost = promise, is_reached, run_cost

    def __getitem__(self, name: str) -> object:
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __str__(self) -> str:
        met = "reached" if self.is_reached else "NOT reached; this is the best that was found"
        return f"{self.promise}: {met}. On pictures not seen before: {self.holdout}"

    def to_json(self) -> str:
        """All of it; `from_json` gives it back."""
        points = [asdict(point) for point in (self.best, self.holdout, *self.frontier)]
        return json.dumps(
            {
                "settings": dict(self._settings),
                "promise": self.promise,
                "is_reached": self.is_reached,
                "run_cost": self.run_cost,
                "best": points[0],
                "holdout": points[1],
                "frontier": points[2:],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "CalibratedConfig":
        """What `to_json` wrote."""
        read = json.loads(text)
        best, holdout, *frontier = (
            Point(**point) for point in (read["best"], read["holdout"], *read["frontier"])
        )
        return cls(
            best, holdout, frontier, read["promise"],
            is_reached=read["is_reached"], run_cost=read["run_cost"],
        )  # fmt: skip
