"""What a calibration tries: families of settings, each with one number from gentle to bold.

first      error control over noise; the best masks for a line and for a replay; cache-dit's masks;
           DBCache
variants   of the best of them: other predictors, error control over steps, first and last blocks
           that always run
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from dit_cachegraph.calibration.find_mask import find_masks, reuse_costs
from dit_cachegraph.config import resolve
from dit_cachegraph.policy.catalog import PREDICTORS
from dit_cachegraph.policy.checks import MASK_POLICIES
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.step_mask import steps_mask
from dit_cachegraph.simulate import simulate

Settings = Mapping[str, object]
Masks = Sequence[tuple[int, ...]]

OVER_NOISE = MappingProxyType({"paced_over": "noise"})
LINE = MappingProxyType({"predictor": "taylorseer", "taylorseer_order": 1})
CURVE = MappingProxyType({"predictor": "taylorseer", "taylorseer_order": 2})
REPLAY = MappingProxyType({"predictor": "replay"})
ENDS = ((1, 0), (0, 1))  # First and last blocks that run at reused steps as well.
MAX_PREDICTORS = 2
CLEARLY = 0.97


class Family(NamedTuple):
    """Settings from gentle to bold, with their shares of the block work where these are known
    before any run. `masks` are those of fixed schedules."""

    name: str
    members: tuple[Settings, ...]
    shares: tuple[float, ...] | None = None
    masks: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Proposals:
    """Families for a model with these block counts, from recordings of uncached runs."""

    recordings: Sequence[Sequence[Recorded]]
    num_blocks: int

    @property
    def num_steps(self) -> int:
        return min(map(len, self.recordings))

    def first(self) -> Iterator[Family]:
        """Those that are tried whatever comes of the others."""
        yield _error_control({**OVER_NOISE, **LINE})
        for predictor in (LINE, REPLAY):
            costs = reuse_costs(self.recordings, resolve(predictor).predictor)
            masks = find_masks(costs)
            yield self._masks("mask", [masks[n] for n in sorted(masks, reverse=True)], predictor)
        presets = [steps_mask(total_steps=self.num_steps, mask_policy=p) for p in MASK_POLICIES]
        for predictor in (LINE, REPLAY):
            yield self._masks("preset mask", presets, predictor)
            yield _dbcache(predictor, 1, 0)

    def variants(self, family: Family, place: int) -> Iterator[Family]:
        """Of the family that leads, at its best member."""
        settings = family.members[place]
        if family.masks:
            for predictor in self._nearer_predictors(family.masks[place], settings):
                yield self._masks(family.name, family.masks, predictor)
            for first, last in ENDS:
                yield self._masks(family.name, family.masks, _predictor_of(settings), first, last)
        elif settings["rule"] == "dbcache":
            more = max(2, self.num_blocks // 4)
            for first, last, predictor in ((more, 0, LINE), (1, 1, LINE), (1, 0, CURVE)):
                yield _dbcache(predictor, first, last)
        else:
            yield _error_control({**OVER_NOISE, **CURVE})
            yield _error_control(LINE)
            yield _error_control(REPLAY)

    def _masks(
        self, name: str, masks: Masks, predictor: Settings, first: int = 0, last: int = 0
    ) -> Family:
        """Fixed schedules, those that compute most in front."""
        region = (first, self.num_blocks - last)
        fixed = {"rule": "fixed", "fixed_region": region if first or last else None}
        always = (first + last) / self.num_blocks
        shares = [(share := sum(mask) / len(mask)) + (1 - share) * always for mask in masks]
        members = [{**fixed, "compute_mask": mask, **predictor} for mask in masks]
        return Family(name, tuple(members), tuple(shares), tuple(masks))

    def _nearer_predictors(self, mask: tuple[int, ...], settings: Settings) -> list[Settings]:
        """Those that would have missed clearly less of the recorded runs under this mask."""
        present = self._missed(mask, _predictor_of(settings))
        others: list[Settings] = [CURVE, *({"predictor": name} for name in PREDICTORS)]
        missed = [(self._missed(mask, other), i) for i, other in enumerate(others)]
        return [others[i] for m, i in sorted(missed) if m < CLEARLY * present][:MAX_PREDICTORS]

    def _missed(self, mask: tuple[int, ...], predictor: Settings) -> float:
        """Squared errors of the reused steps, over all recordings."""
        settings = resolve({"rule": "fixed", "compute_mask": mask, **predictor})
        runs = [simulate(settings.rule, settings.predictor, r) for r in self.recordings]
        return sum(e**2 for run in runs for e in run.errors if e is not None)


def _predictor_of(settings: Settings) -> Settings:
    of_rules = ("rule", "compute_mask", "fixed_region")
    return {name: value for name, value in settings.items() if name not in of_rules}


def _error_control(options: Settings) -> Family:
    tolerances = [0.01 * 1.4**i for i in range(14)]
    members = [{"rule": "error_control", "error_tolerance": t, **options} for t in tolerances]
    return Family("error control", tuple(members))


def _dbcache(predictor: Settings, first: int, last: int) -> Family:
    fixed = {"rule": "dbcache", "Fn_compute_blocks": first, "Bn_compute_blocks": last}
    fixed |= {"max_warmup_steps": 2}
    thresholds = [0.02 * 1.35**i for i in range(14)]
    members = [{**fixed, "residual_diff_threshold": t, **predictor} for t in thresholds]
    return Family("DBCache", tuple(members))
