"""What a call shows of itself, to be told whose it is."""

from typing import NamedTuple

from dit_cachegraph.runtime.conditioning import LatentsIdentity
from dit_cachegraph.runtime.sketch import Sketch
from dit_cachegraph.runtime.trajectory import Clock, Shape


class Sight(NamedTuple):
    """`signature` is that of the call's trunk; `latents_versions` count the writes to its latents,
    None where nobody counts them."""

    clock: Clock | None
    sketch: Sketch | None
    shape: Shape
    latents: LatentsIdentity | None
    signature: int
    latents_versions: tuple[int, ...] | None = None
