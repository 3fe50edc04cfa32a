"""Cache acceleration for diffusion transformers, inside `torch.compile`.

pipe.transformer.compile(backend="cachedit")
"""

from dit_cachegraph.api import configure, request, reset, summary
from dit_cachegraph.calibration.calibrate import calibrate
from dit_cachegraph.calibration.result import CalibratedConfig
from dit_cachegraph.exc import CacheGraphError, InvalidConfig, NotCachedWarning, UnknownTarget
from dit_cachegraph.explain import explain
from dit_cachegraph.plot import plot
from dit_cachegraph.policy.dbcache import DBCacheConfig
from dit_cachegraph.policy.dbprune import DBPruneConfig
from dit_cachegraph.policy.step_mask import steps_mask
from dit_cachegraph.policy.taylorseer import TaylorSeerCalibratorConfig
from dit_cachegraph.report import Report

__all__ = [
    "CacheGraphError",
    "CalibratedConfig",
    "DBCacheConfig",
    "DBPruneConfig",
    "InvalidConfig",
    "NotCachedWarning",
    "Report",
    "TaylorSeerCalibratorConfig",
    "UnknownTarget",
    "calibrate",
    "configure",
    "explain",
    "plot",
    "request",
    "reset",
    "steps_mask",
    "summary",
]
