"""Cache acceleration for diffusion transformers, inside `torch.compile`.

pipe.transformer.compile(backend="cachedit")

`import dit_cachegraph as cache_dit` has the calls of cache-dit as well: `docs/migrating.md`.
"""

import contextlib
from typing import TYPE_CHECKING

from dit_cachegraph.api import check, configure, observe, request, requests, reset, summary
from dit_cachegraph.calibration.calibrate import calibrate
from dit_cachegraph.calibration.result import CalibratedConfig
from dit_cachegraph.compat.block_adapter import BlockAdapter, ForwardPattern, get_adapter
from dit_cachegraph.compat.block_range import block_range
from dit_cachegraph.compat.cache_config import (
    BasicCacheConfig,
    CacheType,
    DBCacheConfig,
    DBPruneConfig,
    cache_type,
)
from dit_cachegraph.compat.calibrators import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from dit_cachegraph.compat.compile_configs import set_compile_configs
from dit_cachegraph.compat.enable_cache import disable_cache, enable_cache, refresh_context
from dit_cachegraph.compat.load_configs import (
    load_attn_backend_config,
    load_cache_config,
    load_configs,
    load_options,
    load_parallelism_config,
    load_quantize_config,
)
from dit_cachegraph.compat.not_taken import ParallelismConfig, QuantizeConfig, find_not_taken
from dit_cachegraph.compat.params_modifier import ParamsModifier
from dit_cachegraph.compat.strify import strify
from dit_cachegraph.compat.supported import SupportedPipelines, supported_pipelines
from dit_cachegraph.exc import (
    CacheGraphError,
    CannotLoad,
    CannotSave,
    InvalidConfig,
    NotCached,
    NotCachedWarning,
    NotLoadedWarning,
    RankLost,
    UnknownTarget,
)
from dit_cachegraph.explain import explain
from dit_cachegraph.keep_whole import keep_whole
from dit_cachegraph.plot import plot
from dit_cachegraph.policy.step_mask import steps_mask
from dit_cachegraph.records import RequestRecord, StepRecord
from dit_cachegraph.report import Report
from dit_cachegraph.saved.export import export
from dit_cachegraph.saved.load_exported import load_exported
from dit_cachegraph.saved.precompile import load, precompile

NONE, DBCache, DBPrune = CacheType.NONE, CacheType.DBCache, CacheType.DBPrune
Pattern_0, Pattern_1, Pattern_2, Pattern_3, Pattern_4, Pattern_5 = ForwardPattern

__all__ = [
    "BasicCacheConfig",
    "BlockAdapter",
    "CacheGraphError",
    "CacheType",
    "CalibratedConfig",
    "CalibratorConfig",
    "CannotLoad",
    "CannotSave",
    "DBCache",
    "DBCacheConfig",
    "DBPrune",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "FoCaCalibratorConfig",
    "ForwardPattern",
    "InvalidConfig",
    "NONE",
    "NotCached",
    "NotCachedWarning",
    "NotLoadedWarning",
    "ParallelismConfig",
    "ParamsModifier",
    "Pattern_0",
    "Pattern_1",
    "Pattern_2",
    "Pattern_3",
    "Pattern_4",
    "Pattern_5",
    "QuantizeConfig",
    "Report",
    "RankLost",
    "RequestRecord",
    "StepRecord",
    "SupportedPipelines",
    "TaylorSeerCalibratorConfig",
    "UnknownTarget",
    "block_range",
    "cache_type",
    "calibrate",
    "check",
    "configure",
    "disable_cache",
    "enable_cache",
    "explain",
    "export",
    "get_adapter",
    "keep_whole",
    "load",
    "load_attn_backend_config",
    "load_cache_config",
    "load_configs",
    "load_exported",
    "load_options",
    "load_parallelism_config",
    "load_quantize_config",
    "observe",
    "plot",
    "precompile",
    "refresh_context",
    "request",
    "requests",
    "reset",
    "set_compile_configs",
    "steps_mask",
    "strify",
    "summary",
    "supported_pipelines",
]


if not TYPE_CHECKING:  # Whoever checks types is told of a name that isn't there.

    def __getattr__(name: str) -> object:
        """Names of cache-dit's that aren't here: a script that has one is told what to do."""
        if name == "__version__":
            # Nothing here needs it, and importing it takes a moment.
            from importlib import metadata  # noqa: PLC0415

            with contextlib.suppress(metadata.PackageNotFoundError):
                return metadata.version("dit_cachegraph")
        if (found := find_not_taken(name)) is not None:
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
