"""How near pictures or clips are to others, through kept libraries: `python -m dit_cachegraph
metrics`, or `measure` in Python. Nothing here is downloaded."""

from dit_cachegraph.metrics.exc import CannotMeasure
from dit_cachegraph.metrics.measure import METRICS, measure
from dit_cachegraph.metrics.score import Score

__all__ = ["METRICS", "CannotMeasure", "Score", "measure"]
