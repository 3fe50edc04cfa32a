"""What a call shows of itself, to be told whose it is."""

from typing import NamedTuple

from dit_cachegraph.requests.latents import LatentsSample, Objects, is_same
from dit_cachegraph.requests.schedule import Clock, Shape


class Fingerprint(NamedTuple):
    """`clock` is that of its timesteps, None where none was read; `sample` is of its latents,
    `shape` theirs, `latents` the objects. `signature` is that of the trunk that was called."""

    clock: Clock | None
    sample: LatentsSample | None
    shape: Shape
    latents: Objects
    signature: int

    @property
    def timestep(self) -> Clock:
        """The first entries of the clock. Beside them it may have a guidance scale or a label,
        which differ from pass to pass."""
        return (self.clock or ())[:2]

    def is_at_the_step_of(self, other: "Fingerprint | None") -> bool:
        """True for two passes of one step: by timestep and latents, since a timestep may come twice
        (Heun)."""
        if other is None or self.clock != other.clock:
            return False
        return is_same(self.sample, other.sample)

    def repeats(self, other: "Fingerprint | None") -> bool:
        """True for a call of the same trunk with the same latents at the same timestep. Where
        nobody counts writes to latents, none is taken to have happened: then the step computes,
        which is never wrong."""
        if other is None or self.signature != other.signature or self.timestep != other.timestep:
            return False
        if self.sample is None or other.sample is None:
            is_unwritten = self.latents.versions == other.latents.versions
            return is_unwritten and self.latents.are_those_of(other.latents)
        return is_same(self.sample, other.sample)
