"""The one refusal of the metrics."""

from dit_cachegraph.exc import CacheGraphError


class CannotMeasure(CacheGraphError):
    """Two things that can't be compared, or a file or package that is missing: one sentence."""
