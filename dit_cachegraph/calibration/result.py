"""What a calibration found: settings to load, with what was measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dit_cachegraph.calibration.plot_frontier import plot_frontier
from dit_cachegraph.calibration.points import Point, Quality, Search
from dit_cachegraph.calibration.rival import FewerSteps
from dit_cachegraph.calibration.rounding import below_noise
from dit_cachegraph.exc import InvalidConfig


class CalibratedConfig(Mapping[str, object]):
    """The settings of the best candidate: `configure(model, **config)`.

    `best` is what was measured where the search went, `holdout` on pictures that it has not seen,
    `tried` every candidate. `promise` is what was asked for, `is_found` whether `best` holds it,
    `is_reached` whether the holdout does. `fewer_steps` is what fewer uncached steps gave there,
    None where `calibrate` couldn't draw them. `rounding_noise` is how far two computed steps are
    apart whose streams differ by a rounding, as a share of them, None where none was computed
    twice. The search took `num_runs` runs, and the time of
    `run_cost` uncached ones.
    """

    def __init__(
        self,
        best: Point,
        holdout: Point,
        tried: Sequence[Point],
        promise: str,
        quality: Quality,
        *,
        is_found: bool,
        is_reached: bool,
        num_runs: int,
        run_cost: float,
        fewer_steps: FewerSteps | None = None,
        rounding_noise: float | None = None,
    ) -> None:
        self._settings = MappingProxyType(dict(best.settings))
        self.best, self.holdout, self.tried = best, holdout, tuple(tried)
        self.promise, self.quality = promise, quality
        self._search = Search(best, holdout, self.tried, quality, promise)
        self.is_found, self.is_reached = is_found, is_reached
        self.num_runs, self.run_cost, self.fewer_steps = num_runs, run_cost, fewer_steps
        self.rounding_noise = rounding_noise

    def __getitem__(self, name: str) -> object:
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    @property
    def frontier(self) -> tuple[Point, ...]:
        """Of those that were tried on most inputs, the ones that no other beats in work and
        quality, from the cheapest on."""
        return self._search.frontier

    def __str__(self) -> str:
        met = "reached"
        if not self.is_found:
            met = "NOT reached; this is the best that was found"
        elif not self.is_reached:
            met = f"reached where it was searched ({self.best}), NOT on other pictures"
        told = f"{self.promise}: {met}. On pictures not seen before: {self.holdout}"
        noise = below_noise(self._settings, self.rounding_noise)
        return ". ".join(filter(None, [told, noise, self._beside_fewer_steps]))

    @property
    def _beside_fewer_steps(self) -> str:
        fewer = self.fewer_steps
        if fewer is None:
            return "Fewer steps were not tried; run_with_steps= tries them"
        if fewer.wins_over(self.holdout.quality(self.quality)):
            return f"Fewer steps win: {fewer}"
        return f"Fewer steps don't: {fewer}"

    def plot(self, path: str | Path) -> None:
        """Draw what was tried and the frontier into the file `path` (.png, .svg, .pdf).

        Raises:
            ImportError: matplotlib is not installed.
        """
        plot_frontier(self._search, path)

    def to_json(self) -> str:
        """All of it; `from_json` gives it back."""
        points = [asdict(point) for point in (self.best, self.holdout, *self.tried)]
        return json.dumps(
            {
                "settings": dict(self._settings),
                "promise": self.promise,
                "quality": self.quality,
                "is_found": self.is_found,
                "is_reached": self.is_reached,
                "num_runs": self.num_runs,
                "run_cost": self.run_cost,
                "rounding_noise": self.rounding_noise,
                "fewer_steps": None if self.fewer_steps is None else asdict(self.fewer_steps),
                "best": points[0],
                "holdout": points[1],
                "tried": points[2:],
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "CalibratedConfig":
        """What `to_json` wrote.

        Raises:
            InvalidConfig: it is something else.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidConfig(
                f"from_json takes what to_json has written: {error!r} in {text[:60]!r}"
            ) from error

    @classmethod
    def _from_dict(cls, read: dict[str, Any]) -> "CalibratedConfig":
        best, holdout, *tried = (
            Point(**point) for point in (read["best"], read["holdout"], *read["tried"])
        )
        said = ("is_found", "is_reached", "num_runs", "run_cost")
        # Not told by versions that did not try fewer steps, or compute any twice.
        fewer, noise = read.get("fewer_steps"), read.get("rounding_noise")
        return cls(
            best, holdout, tried, read["promise"], read["quality"], **{n: read[n] for n in said},
            rounding_noise=noise,
            fewer_steps=None if fewer is None else FewerSteps(**fewer),
        )  # fmt: skip
