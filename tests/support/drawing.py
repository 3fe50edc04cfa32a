"""How the tests of this folder draw: tiny real pipelines whose decisions are known beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers import DiffusionPipeline
from torch import Tensor

import dit_cachegraph as dc
from support.tiny_models import build_flux
from support.tiny_pipelines import FAST_PIPELINES, TinyPipeline

# A threshold of 1 reuses whatever the diff is.
SETTINGS = {
    "inner_backend": "eager",
    "Fn_compute_blocks": 1,
    "max_warmup_steps": 2,
    "residual_diff_threshold": 1.0,
    "max_continuous_cached_steps": 2,
}
HITS = "..HH.HH.HH"
FLUX, SD3, WAN = FAST_PIPELINES[:3]


@dataclass(frozen=True)
class Drawn:
    """What one call of a pipeline gave. `hits`: H for a reused step, a dot for a computed one."""

    latents: Tensor
    hits: str
    reasons: list[str]


def build(tiny: TinyPipeline = FLUX) -> DiffusionPipeline:
    """FLUX has three blocks here, since most of the time goes into tracing."""
    pipe = tiny.build()
    if tiny is FLUX:
        pipe.register_modules(transformer=build_flux(1, 2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cached(pipe: DiffusionPipeline, **settings: object) -> DiffusionPipeline:
    """The same pipeline, its transformer compiled in place."""
    pipe.transformer.compile(backend="cachedit", options={**SETTINGS, **settings})
    return pipe


def draw(
    pipe: DiffusionPipeline, seed: int = 1, tiny: TinyPipeline = FLUX, **arguments: object
) -> Drawn:
    num_before = len(dc.summary(pipe).steps)
    latents = pipe(**{**tiny.arguments(seed), **arguments})[0]
    steps = dc.summary(pipe).steps[num_before:]
    hits = "".join("H" if step.hit else "." for step in steps)
    return Drawn(latents, hits, [step.reason for step in steps])


def at_step(
    index: int, act: Callable[[DiffusionPipeline], None]
) -> Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]:
    """A callback that acts once, after step `index`."""

    def callback(
        pipe: DiffusionPipeline, i: int, _: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if i == index:
            act(pipe)
        return tensors

    return callback
