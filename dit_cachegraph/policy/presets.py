"""What a bare `backend="cachedit"` does, and three neighbours of it.

Each is a rule and a predictor with options; docs/quality.md has the measurements that they were
chosen by.
"""

from collections.abc import Mapping
from types import MappingProxyType

DEFAULT_PRESET = "balanced"
CHEAPEST_PRESET = "draft"

LINE = MappingProxyType({"predictor": "taylorseer", "taylorseer_order": 1})


def _paced(tolerance: float) -> Mapping[str, object]:
    """Error control over noise: shifted schedules take their longest steps last, and what is missed
    there counts most."""
    options = {"error_tolerance": tolerance, "paced_over": "noise"}
    return MappingProxyType({"rule": "error_control", **options, **LINE})


PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "quality": _paced(0.03),
        "balanced": _paced(0.06),
        "fast": _paced(0.12),
        # A third of the work, whatever is seen: no error control goes so low where paths bend. Over
        # such gaps a whole line overshoots under strong guidance.
        CHEAPEST_PRESET: MappingProxyType(
            {
                "rule": "spread",
                "compute_share": 0.36,
                "predictor": "damped_line",
                "damped_line_least": 0.1,
            }
        ),
    }
)
