"""One call for every metric: what is needed for it, and one `Score` for each candidate."""

import os
from collections.abc import Sequence
from pathlib import Path

from dit_cachegraph.installed import is_installed
from dit_cachegraph.metrics.exc import CannotMeasure
from dit_cachegraph.metrics.score import Score

BY_PROMPT = ("clip_score", "image_reward")
METRICS = ("psnr", "ssim", "mse", "lpips", "fid", *BY_PROMPT)
# By metric; the first three are for all.
FILE_PACKAGES = ("imageio", "av", "skimage")
PACKAGES = (
    ("lpips", "lpips"),
    ("fid", "torchmetrics"),
    ("clip_score", "transformers"),
    ("image_reward", "ImageReward"),
)

AnyPath = str | os.PathLike[str]


def measure(
    metric: str,
    reference: AnyPath,
    candidates: Sequence[AnyPath],
    prompts: AnyPath | None = None,
) -> list[Score]:
    """Each candidate against the reference; paths of a picture, a clip, or a folder of either.

    `clip_score` and `image_reward` judge each path by itself, the reference first. `prompts` is
    for them: one prompt a line, or a JSON list, in the order of the files' names.

    Raises:
        CannotMeasure: things that can't be compared, or a missing package, file or weight.
    """
    if metric not in METRICS:
        raise CannotMeasure(f"unknown metric {metric}: known are {', '.join(METRICS)}")
    # A text is a sequence as well: of paths of one letter.
    if isinstance(candidates, str | os.PathLike):
        raise CannotMeasure(f"candidates is the one path {candidates}: put it into a list")
    _check_packages(metric)
    paths = [Path(reference), *map(Path, candidates)]
    if metric in BY_PROMPT:
        if prompts is None:
            raise CannotMeasure(f"{metric} judges by the prompts: give the file that holds them")
        return _by_prompts(metric, paths, Path(prompts))
    if prompts is not None:
        raise CannotMeasure(f"{metric} knows nothing of prompts: leave them out")
    return _against(metric, paths[0], paths[1:])


def _check_packages(metric: str) -> None:
    needed = [*FILE_PACKAGES, *(package for name, package in PACKAGES if name == metric)]
    missing = [name for name in needed if not is_installed(name)]
    if missing == ["ImageReward"]:
        raise CannotMeasure(
            "image_reward needs the package image-reward, which asks for old versions of others: "
            "give it an environment of its own, with this package in it"
        )
    if missing:
        raise CannotMeasure(
            f'{metric} needs {", ".join(missing)}: run pip install "dit_cachegraph[metrics]" (in a '
            'checkout, pip install -e ".[metrics]")'
        )


def _by_prompts(metric: str, paths: Sequence[Path], prompts: Path) -> list[Score]:
    # Optional, and looked for above.
    from dit_cachegraph.metrics import judge, networks  # noqa: PLC0415

    of_prompt = networks.clip() if metric == "clip_score" else networks.image_reward()
    return judge.by_prompts(metric, of_prompt, paths, prompts)


def _against(metric: str, reference: Path, candidates: Sequence[Path]) -> list[Score]:
    # Optional, and looked for above.
    from dit_cachegraph.metrics import judge, networks, pixels  # noqa: PLC0415

    if metric == "fid":
        return judge.by_sets(metric, networks.inception(), reference, candidates)
    of_frames = {
        "psnr": pixels.psnr_of_frames,
        "ssim": pixels.ssim_of_frames,
        "mse": pixels.mse_of_frames,
    }
    of_pairs = of_frames[metric] if metric in of_frames else networks.lpips()
    return judge.by_pairs(metric, of_pairs, reference, candidates)
