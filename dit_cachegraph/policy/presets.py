"""What a bare `backend="cachedit"` does, and two neighbours of it.

Each is a rule and a predictor with options; docs/evaluation.md has the measurements that they were
chosen by.
"""

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_PRESET = "balanced"

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        name: MappingProxyType(
            {
                "rule": "error_control",
                "error_tolerance": tolerance,
                "predictor": "taylorseer",
                "taylorseer_order": 1,
            }
        )
        for name, tolerance in (("quality", 0.06), ("balanced", 0.1), ("fast", 0.15))
    }
)
