"""SeaCache (arXiv 2602.18993): as TeaCache, on what is content in the first block's input.

The modulated input is filtered over the grid of its tokens by the Wiener filter of the step's noise
level, which keeps what is signal by then, coarse structure first; no coefficients are fitted. With
`s` the share of noise, `a = 1 - s`, and `S = 1 / |f|^p` the power spectrum of a picture, each axis
has the gain `a S / (a^2 S + s^2)`; their product is scaled to a mean of 1.

That is the filter of flow models, whose noise share is the timestep as a part of its range; on
others it is an approximation. The grid is read off latents that have one (an image `[B, C, H, W]`
or video `[B, C, F, H, W]`, cut into square patches). Packed latents (FLUX, Qwen-Image) don't show
it: then `seacache_grid` must say it, since a filter along the row of tokens would be another one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dit_cachegraph.policy.checks import check_grid, check_number
from dit_cachegraph.policy.rule import NoiseFilter, Probe, ProbeKind, Span
from dit_cachegraph.policy.rules.accumulated import AddsUp


@dataclass(frozen=True, slots=True, kw_only=True)
class SeaCache(AddsUp):
    """The options of SeaCache."""

    name: ClassVar[str] = "seacache"

    seacache_threshold: float = 0.3
    """Reuse while what has been added up is below this. Higher saves more and costs quality."""

    seacache_grid: tuple[int, ...] | None = None
    """The tokens' grid, (height, width) or (frames, height, width). None: as the latents show it.
    """

    seacache_power: float | None = None
    """The power `p` with which a picture's spectrum falls. None: 2 for images, 3 for videos."""

    def __post_init__(self) -> None:
        check_number("seacache_threshold", self.seacache_threshold)
        grid = check_grid("seacache_grid", self.seacache_grid)
        object.__setattr__(self, "seacache_grid", grid)
        check_number("seacache_power", self.seacache_power, none_is_ok=True)
        AddsUp.__post_init__(self)

    @property
    def threshold(self) -> float:
        return self.seacache_threshold

    def spans(self, list_sizes: Sequence[int]) -> tuple[Span, ...]:
        noise_filter = NoiseFilter(self.seacache_grid, self.seacache_power)
        return (
            Span(0, sum(list_sizes), Probe(ProbeKind.MODULATED_INPUT, noise_filter=noise_filter)),
        )
