"""What a metric says of one path, and how that is shown."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HIGHER_IS_BETTER = frozenset(("psnr", "ssim", "clip_score", "image_reward"))


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one path. `value` is the mean over `items`, the scores by file name; `fid` is
    of a whole set at once and has none."""

    metric: str
    path: str
    value: float
    items: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The worst item's score; that of the set where there are no items."""
        choose = min if self.metric in HIGHER_IS_BETTER else max
        return choose(self.items.values(), default=self.value)


def as_text(scores: Sequence[Score]) -> str:
    """One line a path: the mean, the worst, how many files."""
    width = max(len(score.path) for score in scores)
    header = f"{scores[0].metric:<{width}}  {'mean':>10}  {'worst':>10}  files"
    lines = [
        f"{score.path:<{width}}  {score.value:>10.4f}  {score.worst:>10.4f}  {len(score.items):>5}"
        for score in scores
    ]
    return "\n".join([header, *lines])


def as_json(scores: Sequence[Score]) -> str:
    """A list with one object a path. JSON knows no infinity: it is the text "inf"."""
    rows = [
        {
            "metric": score.metric,
            "path": score.path,
            "value": _number(score.value),
            "items": {name: _number(value) for name, value in score.items.items()},
        }
        for score in scores
    ]
    return json.dumps(rows, indent=2, allow_nan=False)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
