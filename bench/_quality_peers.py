"""Pipelines with somebody else's cache in them: cache-dit's, and the hooks of diffusers."""

import ast
import contextlib
import io
from collections.abc import Mapping

import torch
from diffusers import (
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    TaylorSeerCacheConfig,
)

from bench._quality_models import QualityModel


class FluxPeerPipeline(FluxPipeline):
    """For cache-dit, which patches the class of the pipeline and goes by the start of its name."""


def with_cache_dit(model: QualityModel, settings: Mapping[str, object]) -> FluxPipeline:
    """cache-dit with these settings, told what it can't see: how many branches there are."""
    # Optional: the extra `peers`.
    import cache_dit  # noqa: PLC0415

    pipe = FluxPeerPipeline(**model.load().components)
    pipe.set_progress_bar_config(disable=True)
    config = cache_dit.DBCacheConfig(**settings, enable_separate_cfg=model.num_branches == 2)
    cache_dit.enable_cache(pipe, cache_config=config)
    return pipe


def with_first_block_cache(model: QualityModel, threshold: float, num_steps: int) -> FluxPipeline:
    """diffusers' FirstBlockCache."""
    pipe = model.load()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    return pipe


def with_taylorseer(model: QualityModel, interval: float, num_steps: int) -> FluxPipeline:
    """diffusers' TaylorSeer of order 1, which computes every `interval`-th step: here on attention
    alone, as it comes, so that most of a block runs at every step."""
    return _taylorseer(model, interval, use_lite_mode=False)


def with_taylorseer_lite(model: QualityModel, interval: float, num_steps: int) -> FluxPipeline:
    """The same on the output of the whole model, which skips the blocks."""
    return _taylorseer(model, interval, use_lite_mode=True)


def _taylorseer(model: QualityModel, interval: float, use_lite_mode: bool) -> FluxPipeline:
    pipe = model.load()
    config = TaylorSeerCacheConfig(
        cache_interval=int(interval),
        # Its default of bfloat16 would cost the forecast its precision.
        taylor_factors_dtype=torch.float32,
        use_lite_mode=use_lite_mode,
    )
    pipe.transformer.enable_cache(config)
    return pipe


def with_mag_cache(model: QualityModel, threshold: float, num_steps: int) -> FluxPipeline:
    """diffusers' MagCache, with ratios from an uncached picture as it asks for."""
    pipe = model.load()
    pipe.transformer.enable_cache(
        MagCacheConfig(
            threshold=threshold,
            num_inference_steps=num_steps,
            mag_ratios=_mag_ratios(model, num_steps),
        )
    )
    return pipe


def _mag_ratios(model: QualityModel, num_steps: int) -> list[float]:
    """Of the last picture: MagCache prints them, and tells nobody otherwise."""
    pipe = model.load()
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=num_steps))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.no_grad():
        model.draw(pipe, model.num_pictures - 1, num_steps)
    # With two branches, those of the conditional one come first.
    (line, *_) = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
    return ast.literal_eval(line)
