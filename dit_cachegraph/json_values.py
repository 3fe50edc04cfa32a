"""What `json` may write, so that whoever reads it needn't be Python."""

import math


def jsonable(value: object) -> object:
    """The same with None for NaN and infinity, which JSON doesn't have."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
