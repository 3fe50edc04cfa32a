"""From paths to scores: pairs of files, whole sets, or files with their prompts.

What judges is handed in, so that each of these runs with any network.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from torch import nn

from dit_cachegraph.metrics.media import check_same_kind, paired, paired_frames, read_items
from dit_cachegraph.metrics.networks import OfPairs, OfPrompt, frechet_distance
from dit_cachegraph.metrics.prompts import read_prompts
from dit_cachegraph.metrics.score import Score


def by_pairs(
    metric: str, of_pairs: OfPairs, reference: Path, candidates: Sequence[Path]
) -> list[Score]:
    """Each file of each candidate against the reference's file of the same name."""
    # All are paired before the first is measured: a wrong path shouldn't cost minutes.
    pairs = [paired(reference, candidate) for candidate in candidates]
    return [
        _mean(metric, path, {r.name: of_pairs(paired_frames(r, c)) for r, c in items})
        for path, items in zip(candidates, pairs, strict=True)
    ]


def by_sets(
    metric: str, features: nn.Module, reference: Path, candidates: Sequence[Path]
) -> list[Score]:
    """The Frechet distance of all frames of each candidate to all of the reference.

    It compares how sets are distributed: names play no part, and one may hold more than the other.

    Raises:
        CannotMeasure: pictures against clips, fewer than two frames, or not all of one size.
    """
    ours, *others = (read_items(path) for path in (reference, *candidates))
    for path, theirs in zip(candidates, others, strict=True):
        check_same_kind(reference, ours, path, theirs)
    scores = []
    for path, theirs in zip(candidates, others, strict=True):
        frames = [chain.from_iterable(item.frames() for item in s) for s in (ours, theirs)]
        scores.append(Score(metric, str(path), frechet_distance(features, *frames), {}))
    return scores


def by_prompts(
    metric: str, of_prompt: OfPrompt, paths: Sequence[Path], prompts: Path
) -> list[Score]:
    """Each file of each path by its prompt; a clip is the mean of its frames."""
    found = [read_items(path) for path in paths]
    texts = [read_prompts(prompts, items) for items in found]
    scores = []
    for path, items, prompts_of in zip(paths, found, texts, strict=True):
        values = {
            item.name: statistics.fmean(of_prompt(prompt, frame) for frame in item.frames())
            for item, prompt in zip(items, prompts_of, strict=True)
        }
        scores.append(_mean(metric, path, values))
    return scores


def _mean(metric: str, path: Path, items: Mapping[str, float]) -> Score:
    values = list(items.values())
    if metric == "psnr":
        # Why without the infinite ones: see `Score`.
        values = [value for value in values if not math.isinf(value)] or values
    return Score(metric, str(path), statistics.fmean(values), items)
