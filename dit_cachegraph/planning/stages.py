"""A step as a list of stages: what runs, where a decision falls, and what it is about.

Fn=1, Bn=1 of 4 blocks           segments    0 prologue, 1..4 blocks, 5 epilogue

Stage(0, 1, RUNS)                prologue
Stage(1, 2, PROBED, region=0)    block 0, whose residual is compared; then region 0 is decided
Stage(2, 4, GUARDED, region=0)   blocks 1 and 2: run, or put their estimate in their place
Stage(4, 6, RUNS)                block 3 and the epilogue
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from dit_cachegraph.planning.region import Region


class Role(enum.Enum):
    """What becomes of a stage."""

    RUNS = "runs at every step"
    PROBED = "runs at every step; what it makes is compared, and its region is decided"
    GUARDED = "runs, or is estimated, as was decided"


class Stage(NamedTuple):
    """The segments `start..stop-1` of a trunk, maybe none. `region` is what is decided after it or
    about it; None where a step has no region, and nothing but whose step it is has to be found."""

    start: int
    stop: int
    role: Role
    region: int | None = None


def stages_of(regions: Sequence[Region], num_blocks: int) -> tuple[Stage, ...]:
    """The stages of a step with these regions, in order. Block `i` is segment `i + 1`."""
    stages, at = [], 0
    for i, region in enumerate(regions):
        probe_from, probe_to = region.probe_from + 1, region.probe_boundary + 1
        stages.append(Stage(at, probe_from, Role.RUNS))
        stages.append(Stage(probe_from, probe_to, Role.PROBED, i))
        stages.append(Stage(probe_to, region.start + 1, Role.RUNS))
        stages.append(Stage(region.start + 1, region.stop + 1, Role.GUARDED, i))
        at = region.stop + 1
    if not regions:
        stages += [Stage(0, 1, Role.RUNS), Stage(1, 1, Role.PROBED)]
        at = 1
    stages.append(Stage(at, num_blocks + 2, Role.RUNS))
    return tuple(s for s in stages if s.role is Role.PROBED or s.start < s.stop)
