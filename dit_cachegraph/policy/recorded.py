"""What a dry run sees of a step: what any rule would have compared, and any predictor replayed."""

from typing import NamedTuple

from torch import Tensor


class Recorded(NamedTuple):
    """A sample of one step of a dry run, float32, on the host: the probe [B, n], None where the
    rule compares nothing; what the region added to each stream, [B, n] each; and each stream after
    it, likewise. `noise` is the timestep as a share of the noise range, where it was read;
    `rerounded` is, of some steps, each stream after it computed from streams a rounding away."""

    probe: Tensor | None
    effects: tuple[Tensor, ...]
    outs: tuple[Tensor, ...]
    noise: float | None = None
    rerounded: tuple[Tensor, ...] | None = None
