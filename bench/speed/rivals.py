"""Who draws a whole image of the same FLUX, step by step, with the same steps computed.

    plain, regional          `torch.compile`, `compile_repeated_blocks`; nothing is cached
    cachedit, frozen         this package's backend, by default and with `frozen_weights`
    unguarded                by default, but Dynamo checks no module and no parameter, by torch's
                             `skip_guard_on_all_nn_modules_unsafe`; each step reads the weights
    cachedit-blocks          by default, and by `compile_repeated_blocks`
    cache-dit, and -compiled the peer's DBCache, by itself and under `torch.compile`, set up as its
                             documentation says
    FirstBlockCache          diffusers' own, compiled. It takes no mask of steps: all of its steps
                             but the first are hits, so that only those can be compared
    floor                    one block, compiled with what is before and after the blocks: the least
                             that a hit with one first block has to run

Each changes the model that it is given, or what Dynamo has of it: one engine a process.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import cache_dit
import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel
from torch import Tensor, nn

import dit_cachegraph
from bench.speed.engines import (
    BLOCKS,
    CACHE_SETTINGS,
    CACHEDIT,
    FROZEN,
    PEER_COMPILED,
    PLAIN,
    Model,
)
from bench.speed.flux import NUM_IMAGE_STEPS, Depth, Inputs, Preset, build_model
from dit_cachegraph.backend import cachedit

REGIONAL, UNGUARDED, FLOOR = "regional", "unguarded", "floor"
PEER, FIRST_BLOCK_CACHE = "cache-dit", "FirstBlockCache"
# 10 computed steps and 18 hits.
MASK = (1, 1, 1, 1, *(0, 0, 0, 1) * 6)
NEVER_TOO_FAR = 0.99


@dataclass(frozen=True, slots=True)
class Drawer:
    """`call` makes a step; `hits` are the steps of the last image that were reused, None where the
    engine caches nothing. Each image is drawn `inside` of a context, which is entered untimed."""

    call: Model
    hits: Callable[[], Sequence[int] | None] = lambda: None
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


def draw(drawer: Drawer, image: Sequence[Inputs]) -> list[Tensor]:
    """What the steps of an image return."""
    with drawer.inside():
        return [drawer.call(**inputs)[0].clone() for inputs in image]


def _plain(preset: Preset, depth: Depth) -> Drawer:
    return Drawer(torch.compile(build_model(preset, depth)))


def _floor(preset: Preset, _: Depth) -> Drawer:
    return Drawer(torch.compile(build_model(preset, Depth(1, 0))))


def _regional(preset: Preset, depth: Depth) -> Drawer:
    model = _flux(preset, depth)
    model.compile_repeated_blocks()
    return Drawer(model)


def _ours(preset: Preset, depth: Depth) -> Drawer:
    return _of_ours(build_model(preset, depth), {})


def _frozen(preset: Preset, depth: Depth) -> Drawer:
    return _of_ours(build_model(preset, depth), {"frozen_weights": True})


def _unguarded(preset: Preset, depth: Depth) -> Drawer:
    unsafe = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    return _of_ours(build_model(preset, depth), {"guard_filter_fn": unsafe})


def _of_ours(model: nn.Module, more: Mapping[str, object]) -> Drawer:
    call = torch.compile(model, backend=cachedit, options=_options(more))  # type: ignore[arg-type]
    return Drawer(call, lambda: _hits(model))


def _our_blocks(preset: Preset, depth: Depth) -> Drawer:
    model = _flux(preset, depth)
    model.compile_repeated_blocks(backend=cachedit, options=_options({}))
    return Drawer(model, lambda: _hits(model))


def _options(more: Mapping[str, object]) -> dict[str, object]:
    return {
        **CACHE_SETTINGS,
        "residual_diff_threshold": NEVER_TOO_FAR,
        "steps_computation_mask": MASK,
        "steps_computation_policy": "dynamic",
        **more,
    }


def _hits(model: nn.Module) -> Sequence[int]:
    """Of the last image of ours."""
    steps = dit_cachegraph.summary(model).steps[-NUM_IMAGE_STEPS:]
    return [i for i, step in enumerate(steps) if step.hit]


def _peer(preset: Preset, depth: Depth) -> Drawer:
    model = _peer_model(preset, depth)
    return _of_peer(model, model)


def _peer_compiled(preset: Preset, depth: Depth) -> Drawer:
    cache_dit.set_compile_configs()
    model = _peer_model(preset, depth)
    return _of_peer(model, torch.compile(model))


def _peer_model(preset: Preset, depth: Depth) -> FluxTransformer2DModel:
    model = _flux(preset, depth)
    config = cache_dit.DBCacheConfig(
        **CACHE_SETTINGS,
        residual_diff_threshold=NEVER_TOO_FAR,
        steps_computation_mask=list(MASK),
        steps_computation_policy="dynamic",
        num_inference_steps=NUM_IMAGE_STEPS,
    )
    cache_dit.enable_cache(model, cache_config=config)
    return model


def _of_peer(model: FluxTransformer2DModel, call: Model) -> Drawer:
    def hits() -> Sequence[int]:
        (stats, *_) = cache_dit.summary(model, logging=False)
        return list(stats.cached_steps)

    # It is told where an image begins; otherwise the next one goes on with the steps of the last.
    def begin() -> AbstractContextManager[object]:
        cache_dit.refresh_context(model, num_inference_steps=NUM_IMAGE_STEPS)
        return nullcontext()

    return Drawer(call, hits, begin)


def _first_block_cache(preset: Preset, depth: Depth) -> Drawer:
    model = _flux(preset, depth)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    call = torch.compile(model)
    return Drawer(call, lambda: range(1, NUM_IMAGE_STEPS), lambda: model.cache_context("image"))


def _flux(preset: Preset, depth: Depth) -> FluxTransformer2DModel:
    model = build_model(preset, depth)
    assert isinstance(model, FluxTransformer2DModel)
    return model


DRAWERS: Mapping[str, Callable[[Preset, Depth], Drawer]] = {
    PLAIN: _plain,
    REGIONAL: _regional,
    CACHEDIT: _ours,
    UNGUARDED: _unguarded,
    FROZEN: _frozen,
    BLOCKS: _our_blocks,
    PEER: _peer,
    PEER_COMPILED: _peer_compiled,
    FIRST_BLOCK_CACHE: _first_block_cache,
    FLOOR: _floor,
}
