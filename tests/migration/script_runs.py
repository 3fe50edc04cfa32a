"""Run a script of `scripts/` with cache-dit, or with ours by changing its imports alone."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

import dit_cachegraph as dc

SCRIPTS = Path(__file__).parent / "scripts"
OURS = "dit_cachegraph"


@dataclass(frozen=True)
class Ran:
    """What a script left: for each guidance branch of each transformer, the steps that were reused
    in its last image; and how many blocks each of them skipped, which cache-dit counts where blocks
    decide for themselves."""

    output: Tensor
    hits: tuple[tuple[int, ...], ...]
    num_skipped: tuple[int, ...]


def run_script(name: str, package: str) -> dict[str, object]:
    """The script's names after it ran."""
    path = SCRIPTS / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    if package == OURS:
        text = re.sub(r"^import cache_dit$", f"import {OURS} as cache_dit", text, flags=re.M)
        text = re.sub(r"^from cache_dit import", f"from {OURS} import", text, flags=re.M)
    names: dict[str, object] = {"__name__": name, "__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)
    return names


def transformers_in(names: dict[str, object]) -> list[nn.Module]:
    pipe = names.get("pipe")
    found = [names["transformer"]] if pipe is None else [pipe.transformer]
    found += [other] if (other := getattr(pipe, "transformer_2", None)) is not None else []
    return [m._orig_mod if isinstance(m, OptimizedModule) else m for m in found]


def decisions_of_cache_dit(names: dict[str, object], num_branches: int) -> Ran:
    # Optional.
    import cache_dit  # noqa: PLC0415

    hits, skipped = [], []
    for transformer in transformers_in(names):
        found = cache_dit.summary(transformer, logging=False)
        lists = found[:-1] or found
        stats = lists[0]
        prunes = len(stats.pruned_blocks) > 0
        cached = (stats.cached_steps, stats.cfg_cached_steps)
        pruned = (stats.pruned_steps, stats.cfg_pruned_steps)
        if len([one for one in lists if one.cached_steps]) > 1:
            # A step is a hit where any list was reused.
            cached = (sorted({step for one in lists for step in one.cached_steps}),)
        hits += [tuple(steps) for steps in (pruned if prunes else cached)[:num_branches]]
        skipped += list(filter(None, stats.pruned_blocks))
    return Ran(names["output"], tuple(hits), tuple(skipped))


def decisions_of_ours(names: dict[str, object], num_branches: int) -> Ran:
    hits, skipped = [], []
    for transformer in transformers_in(names):
        steps = dc.summary(transformer).steps
        first = max(i for i, step in enumerate(steps) if step.step == 0) - num_branches + 1
        for branch in (steps[first + i :: num_branches] for i in range(num_branches)):
            hits.append(tuple(step.step for step in branch if step.hit))
            counts = [sum(stop - start for start, stop in step.skipped) for step in branch]
            skipped += filter(None, counts)
    return Ran(names["output"], tuple(hits), tuple(skipped))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return (torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)).item()
