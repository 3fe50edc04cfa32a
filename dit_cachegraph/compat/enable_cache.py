"""`enable_cache`, `refresh_context` and `disable_cache`: cache-dit's calls on a pipeline or a
transformer."""

import logging
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from dit_cachegraph.api import configure, reset
from dit_cachegraph.compat.block_adapter import BlockAdapter
from dit_cachegraph.compat.cache_config import BasicCacheConfig, CacheType
from dit_cachegraph.compat.calibrators import CalibratorConfig
from dit_cachegraph.compat.flat_options import check_kinds, configs_of, settings_given
from dit_cachegraph.compat.not_taken import refuse_not_taken
from dit_cachegraph.compat.params_modifier import (
    Modifiers,
    Settings,
    changed_of_each_list,
    settings_of_transformers,
)
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.checks import check_bool
from dit_cachegraph.targets import foreign_cache_note, modules_in

log = logging.getLogger("dit_cachegraph")
Target = TypeVar("Target")


def enable_cache(
    pipe_or_adapter: Target,
    cache_config: BasicCacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: Modifiers = None,
    parallelism_config: object = None,
    attention_backend: object = None,
    quantize_config: object = None,
    *,
    compile: bool = False,
    frozen_weights: bool = False,
    **options: object,
) -> Target:
    """Cache the transformers of a pipeline, a `BlockAdapter`, or one transformer, and return it.

    The cache runs over the blocks as they are, at once; `compile=True`, or a `torch.compile` of the
    transformer before or after this, compiles them. `frozen_weights=True` is the promise that they
    stay as they are (`CompileOptions.frozen_weights` says what it gives up). `options` are those of
    `cache_config` and of calibrators by their flat names. Called again, it replaces all settings;
    with `cache_type="NONE"` it turns off what was on. The transformer's `forward` is replaced on
    the instance, until `disable_cache`.

    Raises:
        InvalidConfig: an unknown option, a bad value, something that is not taken here, or a
            transformer that carries another cache. At the first call of the transformer: a hint of
            the adapter that contradicts its graph.
        UnknownTarget: there is no transformer in it.
    """
    refuse_not_taken(parallelism_config, attention_backend, quantize_config)
    check_kinds(cache_config, calibrator_config)
    check_bool("compile", compile)
    check_bool("frozen_weights", frozen_weights)
    # What asks Dynamo imports it, and who calls what was exported does without it.
    from dit_cachegraph.compat.cached_forward import install, remove  # noqa: PLC0415

    modules = modules_in(pipe_or_adapter)
    for module in modules:
        if (note := foreign_cache_note(module)) is not None:
            raise InvalidConfig(note)
    base = _base_settings(cache_config, calibrator_config, options)
    if base is None:
        for module in modules:
            remove(module)
        return pipe_or_adapter
    hints: list[tuple] = [()] * len(modules)
    if isinstance(pipe_or_adapter, BlockAdapter):
        hints = list(pipe_or_adapter.hints())
        params_modifiers = pipe_or_adapter.params_modifiers or params_modifiers
    settings = settings_of_transformers(base, params_modifiers, len(modules))
    for own in settings:
        resolve(own)
    for module, own, own_hints in zip(modules, settings, hints, strict=True):
        forward = install(module)
        forward.turn_on(own, own_hints, compiles=compile, are_weights_frozen=frozen_weights)
    return pipe_or_adapter


def _base_settings(
    cache_config: BasicCacheConfig | None,
    calibrator_config: CalibratorConfig | None,
    options: Mapping[str, object],
) -> Settings | None:
    """What all transformers go by; None for no cache at all."""
    flat, flat_calibrator = configs_of(options, is_partial=cache_config is not None)
    cache = flat if cache_config is None else cache_config
    if (flat if "cache_type" in flat.given() else cache).kind is CacheType.NONE:
        return None
    settings = cache.whole_settings()
    if cache_config is not None:
        settings |= flat.settings()
    calibrator = flat_calibrator or calibrator_config
    return settings | ({"predictor": "replay"} if calibrator is None else calibrator.settings())


def disable_cache(pipe_or_adapter: object) -> None:
    """Leave the transformers as they were before `enable_cache`, and drop what is kept for them."""
    from dit_cachegraph.compat.cached_forward import remove  # noqa: PLC0415

    for module in modules_in(pipe_or_adapter):
        if not remove(module):
            log.warning("%s: enable_cache wasn't called for it", type(module).__name__)


def refresh_context(
    transformer: nn.Module,
    *,
    cache_config: BasicCacheConfig | None = None,
    calibrator_config: CalibratorConfig | None = None,
    parallelism_config: object = None,
    attention_backend: object = None,
    quantize_config: object = None,
    verbose: bool = False,
    **options: object,
) -> None:
    """Forget what is kept for the transformer, and change these settings of it, or of each of its
    block lists where they have settings of their own. Not needed between images: a new one is seen
    by itself.

    Raises:
        InvalidConfig: an unknown option, a bad value, something that is not taken here, or
            `cache_type="NONE"`.
    """
    refuse_not_taken(parallelism_config, attention_backend, quantize_config)
    changed = settings_given(cache_config, calibrator_config, options)
    if changed.get("enabled") is False:
        raise InvalidConfig(
            "cache_type='NONE': refresh_context changes a cache that is on; call disable_cache to "
            "turn it off"
        )
    if changed:
        (module,) = modules_in(transformer)
        overrides = REGISTRY.of_module(module).overrides
        configure(transformer, **changed_of_each_list(overrides, changed))
    reset(transformer)
    if verbose:
        log.info("%s: nothing is kept; changed: %s", type(transformer).__name__, changed or "-")
