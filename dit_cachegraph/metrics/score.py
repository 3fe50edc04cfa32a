"""What a metric says of one path, and how that is shown."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HIGHER_IS_BETTER = frozenset(("psnr", "ssim", "clip_score", "image_reward"))


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one path. `value` is the mean over `items`, the scores by file name; `fid` is
    of a whole set at once and has none.

    A PSNR is infinite where a file equals its partner, and one of those would hide all the others:
    `value` is the mean over the files that differ, and infinite where none does.
    """

    metric: str
    path: str
    value: float
    items: Mapping[str, float]

    @property
    def num_equal(self) -> int:
        """How many files `value` leaves out since they equal their partners. PSNR alone tells it:
        other metrics have a number for those too, and leave out none."""
        return sum(map(math.isinf, self.items.values())) if self.metric == "psnr" else 0

    @property
    def worst(self) -> float:
        """The worst item's score; that of the set where there are no items."""
        choose = min if self.metric in HIGHER_IS_BETTER else max
        return choose(self.items.values(), default=self.value)


def as_text(scores: Sequence[Score]) -> str:
    """One line a path: the mean, the worst, how many files; for PSNR also how many of them are
    equal to their partners, which the mean leaves out."""
    width = max(len(score.path) for score in scores)
    is_psnr = scores[0].metric == "psnr"
    header = f"{scores[0].metric:<{width}}  {'mean':>10}  {'worst':>10}  files"
    lines = [header + ("  equal" if is_psnr else "")]
    for score in scores:
        line = f"{score.path:<{width}}  {score.value:>10.4f}  {score.worst:>10.4f}"
        line += f"  {len(score.items):>5}"
        lines.append(line + (f"  {score.num_equal:>5}" if is_psnr else ""))
    return "\n".join(lines)


def as_json(scores: Sequence[Score]) -> str:
    """A list with one object a path; `num_equal` is in those of PSNR. JSON knows no infinity: it is
    the text "inf"."""
    return json.dumps([_row(score) for score in scores], indent=2, allow_nan=False)


def _row(score: Score) -> dict[str, object]:
    row: dict[str, object] = {
        "metric": score.metric,
        "path": score.path,
        "value": _number(score.value),
    }
    if score.metric == "psnr":
        row["num_equal"] = score.num_equal
    return {**row, "items": {name: _number(value) for name, value in score.items.items()}}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
