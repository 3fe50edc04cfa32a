"""Pipelines with somebody else's cache in them: cache-dit's, and the hooks of diffusers."""

import ast
import contextlib
import io
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from diffusers import (
    DiffusionPipeline,
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
)

from bench.quality.models import NUM_PICTURES, QualityModel


class FluxPeerPipeline(FluxPipeline):
    """For cache-dit, which patches the class of the pipeline and goes by the start of its name."""


class WanPeerPipeline(WanPipeline):
    """The same for Wan."""


PEER_CLASSES: Mapping[type, Callable[..., DiffusionPipeline]] = MappingProxyType(
    {FluxPipeline: FluxPeerPipeline, WanPipeline: WanPeerPipeline}
)

ATTENTIONS = r".*blocks\.\d+\.attn\d?"


def with_cache_dit(
    model: QualityModel, settings: Mapping[str, object], order: int, *, prunes: bool
) -> DiffusionPipeline:
    """cache-dit with these settings, told what it can't see: how many branches there are. An
    `order` above 0 is TaylorSeer's."""
    # Optional: the extra `peers`.
    import cache_dit  # noqa: PLC0415

    plain = model.load()
    pipe: DiffusionPipeline = PEER_CLASSES[type(plain)](**plain.components)
    pipe.set_progress_bar_config(disable=True)
    make = cache_dit.DBPruneConfig if prunes else cache_dit.DBCacheConfig
    config = make(**settings, enable_separate_cfg=model.num_branches == 2)
    taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    # It tells at length what it found.
    logging.disable(logging.INFO)
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=taylor)
    logging.disable(logging.NOTSET)
    return pipe


def with_first_block_cache(
    model: QualityModel, threshold: float, num_steps: int
) -> DiffusionPipeline:
    """diffusers' FirstBlockCache."""
    pipe = model.load()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    return pipe


def with_taylorseer(model: QualityModel, interval: float, num_steps: int) -> DiffusionPipeline:
    """diffusers' TaylorSeer of order 1, which computes every `interval`-th step: here on attention
    alone, as it comes, so that most of a block runs at every step. By its own patterns it would
    find none in Wan."""
    return _taylorseer(model, interval, cache_identifiers=[ATTENTIONS])


def with_taylorseer_lite(model: QualityModel, interval: float, num_steps: int) -> DiffusionPipeline:
    """The same on the output of the whole model, which skips the blocks."""
    return _taylorseer(model, interval, use_lite_mode=True)


def with_later_taylorseer_lite(
    model: QualityModel, interval: float, num_steps: int
) -> DiffusionPipeline:
    """The same with six first steps that compute, in place of three: under guidance a forecast
    explodes where the path bends."""
    return _taylorseer(model, interval, use_lite_mode=True, disable_cache_before_step=6)


def _taylorseer(model: QualityModel, interval: float, **where: object) -> DiffusionPipeline:
    pipe = model.load()
    config = TaylorSeerCacheConfig(
        cache_interval=int(interval),
        # Its default of bfloat16 would cost the forecast its precision.
        taylor_factors_dtype=torch.float32,
        **where,
    )
    pipe.transformer.enable_cache(config)
    return pipe


def with_mag_cache(model: QualityModel, threshold: float, num_steps: int) -> DiffusionPipeline:
    """diffusers' MagCache, with ratios from an uncached picture as it asks for."""
    pipe = model.load()
    pipe.transformer.enable_cache(
        MagCacheConfig(
            threshold=threshold,
            num_inference_steps=num_steps,
            mag_ratios=mag_ratios(model, num_steps),
        )
    )
    return pipe


def mag_ratios(model: QualityModel, num_steps: int) -> list[float]:
    """What MagCache goes by, one a step, of the last picture alone: it prints them, and tells
    nobody otherwise."""
    pipe = model.load()
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=num_steps))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.no_grad():
        model.draw(pipe, range(NUM_PICTURES - 1, NUM_PICTURES), num_steps)
    # With two branches, those of the conditional one come first.
    (line, *_) = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
    return ast.literal_eval(line)
