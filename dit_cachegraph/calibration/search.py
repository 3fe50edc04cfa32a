"""The search: each family is bisected on one picture, the best are settled on all.

A family whose work is known beforehand is tried only where it would beat the best so far: at most
one run is lost on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dit_cachegraph.calibration.bench import Bench
from dit_cachegraph.calibration.families import Family, Proposals
from dit_cachegraph.calibration.goal import Goal
from dit_cachegraph.calibration.points import Point


class Tried(NamedTuple):
    """A point, and which member of which family it is."""

    point: Point
    family: Family
    place: int


@dataclass(slots=True)
class Search:
    """`num_kept_back` runs are for the holdout."""

    bench: Bench
    goal: Goal
    inputs: Sequence[object]
    num_kept_back: int
    tried: list[Tried] = field(default_factory=list)

    @property
    def points(self) -> list[Point]:
        return [tried.point for tried in self.tried]

    def find(self, proposals: Proposals) -> Point:
        """The best, on all inputs unless the runs did not suffice."""
        for family in proposals.first():
            self._bisect(family)
        leader = self._leader(self.tried)
        for family in proposals.variants(leader.family, leader.place):
            self._bisect(family)
        presets = [tried for tried in self.tried if tried.family.name == "preset mask"]
        for some in filter(None, (self.tried, presets)):
            self._settle(self._leader(some))
        whole = [point for point in self.points if point.num_inputs == len(self.inputs)]
        return self.goal.best(whole or self.points)

    def _leader(self, some: Sequence[Tried]) -> Tried:
        best = self.goal.best([tried.point for tried in some])
        return next(tried for tried in some if tried.point is best)

    def _bisect(self, family: Family) -> None:
        """Towards the border of what holds: the boldest of a quality, the gentlest of a budget."""
        places = self._worth_trying(family)
        low, high = places.start, places.stop - 1
        is_challenge = family.shares is not None and self.goal.is_quality and low > 0
        place = low if is_challenge else (low + high) // 2
        while low <= high:
            point = self._try(family, place, self.inputs[:1])
            if point is None or (is_challenge and not self.goal.holds(point)):
                return
            is_challenge = False
            if self._is_bolder_next(point):
                low = place + 1
            else:
                high = place - 1
            place = (low + high) // 2

    def _worth_trying(self, family: Family) -> range:
        """Places of members that might be better than the best so far."""
        shares, num = family.shares, len(family.members)
        if shares is None:
            return range(num)
        if self.goal.compute_budget is not None:
            fits = [i for i, share in enumerate(shares) if share <= self.goal.compute_budget]
            return range(fits[0], fits[0] + 1) if fits else range(num - 1, num)
        best = self.goal.best(self.points) if self.tried else None
        if best is None or not self.goal.holds(best):
            return range(num)
        cheaper = [i for i, share in enumerate(shares) if share < best.share - 1e-9]
        return range(cheaper[0], num) if cheaper else range(0)

    def _settle(self, leader: Tried) -> None:
        """Try it on all inputs, and its neighbours until the border is crossed."""
        family, place = leader.family, leader.place
        is_bolder_next = None
        while (point := self._try(family, place, self.inputs)) is not None:
            if is_bolder_next not in (None, self._is_bolder_next(point)):
                return
            is_bolder_next = self._is_bolder_next(point)
            place += 1 if is_bolder_next else -1
            if place not in self._open_places(family):
                return

    def _open_places(self, family: Family) -> range:
        budget, shares = self.goal.compute_budget, family.shares
        if budget is None or shares is None:
            return range(len(family.members))
        return range(sum(share > budget for share in shares), len(family.members))

    def _is_bolder_next(self, point: Point) -> bool:
        return self.goal.holds(point) == self.goal.is_quality

    def _try(self, family: Family, place: int, inputs: Sequence[object]) -> Point | None:
        settings = family.members[place]
        num_new = self.bench.num_new(inputs, settings)
        if not self.bench.has_room(num_new, self.num_kept_back):
            return None
        point = self.bench.try_out(inputs, settings)
        self.tried.append(Tried(point, family, place))
        return point
