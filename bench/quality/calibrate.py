"""Calibrates a trained model and says how well its promise holds on prompts that were not searched
on, beside cache-dit's masks at the same work.

    python -m bench.calibrate flux --psnr 30
    python -m bench.calibrate wan --budget 0.5 --schedule "UniPC, flow shift 5"
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

import dit_cachegraph
from bench.common.threads import use_one_thread
from bench.quality.schedules import SCHEDULES
from bench.train.recipes import RECIPES, Recipe
from bench.train.sampling import draw, embed, load_pipeline
from bench.train.shelf import kept_in
from dit_cachegraph import CalibratedConfig
from dit_cachegraph.backend import cachedit
from dit_cachegraph.policy.checks import MASK_POLICIES

PROMPTS_A_RUN = 4
INPUTS, HOLDOUT = (0, 1, 2), (3, 4, 5)
LINE = {"predictor": "taylorseer", "taylorseer_order": 1}
Settings = Mapping[str, object]


def drawing(
    recipe: Recipe, folder: Path, schedule: str | None, guidance: float, num_prompts: int
) -> tuple[object, Callable[[object, int], Tensor]]:
    """The pipeline, compiled, and a run in so many steps: `num_prompts` prompts of its own for each
    number. Without a schedule, the pipeline's own."""
    pipe = load_pipeline(recipe, folder)
    if schedule is not None:
        pipe.scheduler = SCHEDULES[schedule]()
    pipe.transformer.compile(backend=cachedit, options={"inner_backend": "eager"})
    picks = recipe.world.every_kind(num_prompts * (1 + max(*INPUTS, *HOLDOUT)))
    text = embed(recipe, folder, picks).unflatten(0, (-1, num_prompts))

    def run(one: object, num_steps: int) -> Tensor:
        assert isinstance(one, int)
        drawn = draw(recipe, pipe, text[one], num_steps=num_steps, guidance=guidance, seed=one)
        return (drawn + 1) / 2

    return pipe, run


def masks_within(share: float, num_steps: int) -> Iterator[tuple[str, Settings]]:
    """cache-dit's masks of at most this share of the steps, by each of two predictors."""
    for policy in MASK_POLICIES:
        mask = dit_cachegraph.steps_mask(total_steps=num_steps, mask_policy=policy)
        if sum(mask) <= share * num_steps + 1e-6:
            fixed = {"rule": "fixed", "compute_mask": mask, "fixed_region": None}
            yield f"{policy}, replay", {**fixed, "predictor": "replay"}
            yield f"{policy}, line", {**fixed, **LINE}


def qualities(
    pipe: object, run: Callable[[object], Tensor], settings: Settings, wanted: Sequence[Tensor]
) -> list[float]:
    """PSNR of each run of the holdout in dB, against the uncached pictures."""
    dit_cachegraph.configure(pipe, enabled=True, **settings)
    found = []
    for one, reference in zip(HOLDOUT, wanted, strict=True):
        dit_cachegraph.reset(pipe)
        error = float((run(one) - reference).square().mean())
        found.append(-10 * float(np.log10(max(error, 1e-10))))
    return found


def report(found: CalibratedConfig, others: Mapping[str, Sequence[float]]) -> str:
    """What was promised, what came of it, and what the masks give at no more work."""
    best, holdout = found.best, found.holdout
    fewer = found.fewer_steps
    wins = fewer is not None and fewer.wins_over(holdout.quality(found.quality))
    lines = [
        f"asked for {found.promise}",
        f"searched  {best}, {found.num_runs} runs, {found.run_cost:.1f} uncached ones in time",
        f"others    {holdout}: {holdout.psnr_db - best.psnr_db:+.2f} dB, "
        f"{holdout.share - best.share:+.1%} of the work",
        f"fewer     {fewer}: {'wins' if wins else 'does not win'}",
        f"settings  { {name: value for name, value in found.items() if value is not None} }",
    ]
    lines += [f"mask      {name}: {np.mean(values):.1f} dB" for name, values in others.items()]
    return "\n".join(lines)


def main() -> None:
    """Prints the report; `--plot` writes a picture of what was tried."""
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--psnr", type=float)
    parser.add_argument("--ssim", type=float)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--schedule", choices=SCHEDULES)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--prompts", type=int, default=PROMPTS_A_RUN, help="drawn at once in a run")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    use_one_thread()
    logging.getLogger("dit_cachegraph").setLevel(logging.ERROR)
    recipe = RECIPES[asked.recipe]
    folder = asked.folder or kept_in(recipe.folder)
    pipe, run_with_steps = drawing(recipe, folder, asked.schedule, asked.guidance, asked.prompts)

    def run(one: object) -> Tensor:
        return run_with_steps(one, asked.steps)

    found = dit_cachegraph.calibrate(
        pipe, run, target_psnr=asked.psnr, target_ssim=asked.ssim, compute_budget=asked.budget,
        inputs=INPUTS, holdout=HOLDOUT, run_with_steps=run_with_steps,
    )  # fmt: skip
    dit_cachegraph.configure(pipe, enabled=False)
    wanted = [run(one) for one in HOLDOUT]
    share = max(found.best.share, asked.budget or 0.0)
    masks = dict(masks_within(share, asked.steps))
    others = {name: qualities(pipe, run, own, wanted) for name, own in masks.items()}
    print(report(found, others))
    if asked.plot is not None:
        found.plot(asked.plot)
