"""The shipped FLUX through cache-dit and through ours: the same weights, prompts, noise, options.

cache-dit patches the class of the pipeline it is given, so it gets a subclass of its own.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields

import cache_dit
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

import dit_cachegraph as dc
from dit_cachegraph.demo.flux_scenes import SIDE_ARGUMENT, embed, load_pipeline, shipped_prompts
from dit_cachegraph.policy.catalog import PREDICTORS, RULES
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer

# By names that both know. The region is never left to a default, where they differ.
Options = Mapping[str, object]
ONE_FIRST_BLOCK = {"Fn_compute_blocks": 1}
TAYLOR_OPTIONS = {f.name for f in fields(TaylorSeer)}


class FluxPeerPipeline(FluxPipeline):
    """cache-dit goes by the first letters of the name."""


@dataclass(frozen=True)
class Sampling:
    """What is drawn: `batch` prompts in so many steps; guidance above 1 makes a second call a step,
    with zeros as the negative prompt."""

    num_steps: int = 9
    batch: int = 2
    guidance: float = 1.0
    first_prompt: int = 0

    @property
    def num_branches(self) -> int:
        return 2 if self.guidance > 1 else 1

    @property
    def seeds(self) -> range:
        return range(self.first_prompt, self.first_prompt + self.batch)

    def inputs(self) -> dict[str, object]:
        embeddings = embed(shipped_prompts()[self.first_prompt :][: self.batch])
        nothing = torch.zeros_like(embeddings)
        return {
            "prompt_embeds": embeddings,
            "pooled_prompt_embeds": embeddings.mean(1),
            "negative_prompt_embeds": nothing,
            "negative_pooled_prompt_embeds": nothing.mean(1),
            "true_cfg_scale": self.guidance,
            "height": SIDE_ARGUMENT,
            "width": SIDE_ARGUMENT,
            "num_inference_steps": self.num_steps,
            "guidance_scale": 0.0,
            "generator": [torch.Generator().manual_seed(seed) for seed in self.seeds],
            "output_type": "latent",
        }


@dataclass(frozen=True)
class Ran:
    """The tokens of the pictures [B, 64, 48]; for each branch, the steps that were reused and the
    diffs that were compared, by step (the mean over blocks where each has its own). Where blocks
    are pruned one by one, also how many at each of those steps."""

    tokens: Tensor
    hits: tuple[tuple[int, ...], ...]
    diffs: tuple[Mapping[int, float], ...]
    num_pruned: tuple[tuple[int, ...], ...]


def sample(pipe: FluxPipeline, sampling: Sampling) -> Tensor:
    return pipe(**sampling.inputs()).images


def calls_of(sampling: Sampling) -> list[dict[str, object]]:
    """What an uncached image calls the transformer with, step by step."""
    pipe, calls = load_pipeline(), []
    pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
    )
    sample(pipe, sampling)
    return calls


def peer_pipeline() -> FluxPeerPipeline:
    """cache-dit's pipeline, not cached yet."""
    pipe = FluxPeerPipeline(**load_pipeline().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer_config(settings: Options) -> cache_dit.BasicCacheConfig:
    """What cache-dit calls the rule and its options."""
    options = {**ONE_FIRST_BLOCK, **settings}
    make = (
        cache_dit.DBPruneConfig
        if options.pop("rule", None) == "dbprune"
        else cache_dit.DBCacheConfig
    )
    for name in ("predictor", *TAYLOR_OPTIONS):
        options.pop(name, None)
    return make(**options)


def peer_calibrator(settings: Options) -> cache_dit.TaylorSeerCalibratorConfig | None:
    """What cache-dit calls the predictor and its options."""
    if settings.get("predictor") != "taylorseer":
        return None
    given = {name: settings[name] for name in TAYLOR_OPTIONS & settings.keys()}
    return cache_dit.TaylorSeerCalibratorConfig(**given)


def run_peer(sampling: Sampling, settings: Options) -> Ran:
    """One image through cache-dit, which has to be told whether there are two branches."""
    pipe = peer_pipeline()
    config = peer_config({"enable_separate_cfg": sampling.num_branches == 2, **settings})
    cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=peer_calibrator(settings))
    tokens = sample(pipe, sampling)
    return Ran(tokens, *_peer_decisions(pipe, sampling.num_branches))


def peer_transformer(**settings: object) -> FluxTransformer2DModel:
    """Cached without its pipeline, as servers do."""
    transformer = load_pipeline().transformer
    cache_dit.enable_cache(transformer, cache_config=peer_config(settings))
    return transformer


def _peer_decisions(pipe, num_branches: int):
    (stats, *_) = cache_dit.summary(pipe, logging=False)
    hits = (stats.cached_steps, stats.cfg_cached_steps)[:num_branches]
    diffs = (stats.residual_diffs, stats.cfg_residual_diffs)[:num_branches]
    pruned = (stats.pruned_blocks, stats.cfg_pruned_blocks)[:num_branches]
    num_pruned = tuple(tuple(filter(None, blocks)) for blocks in pruned)
    return tuple(map(tuple, hits)), tuple(map(_compared, diffs)), num_pruned


def _compared(diffs: Mapping[str, float | list[float]]) -> dict[int, float]:
    by_step = {int(s): d if isinstance(d, list) else [float(d)] for s, d in diffs.items()}
    # What is not positive is a mark: no threshold, a forced hit, another shape.
    kept = {step: [d for d in found if d > 0] for step, found in by_step.items()}
    return {step: statistics.fmean(found) for step, found in kept.items() if found}


def our_pipeline(**options: object) -> FluxPipeline:
    """Compiled for ours; its settings change by `run_ours`."""
    pipe = load_pipeline()
    options = {"inner_backend": "eager", **ONE_FIRST_BLOCK, **options}
    pipe.transformer.compile(backend="cachedit", options=options)
    return pipe


def run_ours(pipe: FluxPipeline, sampling: Sampling, settings: Options) -> Ran:
    """One image through ours, decided by the mean of the batch as cache-dit does; whatever an
    earlier run set is back at its default."""
    chosen = {"rule": "dbcache", "predictor": "replay", **settings}
    kinds = (RULES[chosen["rule"]], PREDICTORS[chosen["predictor"]])
    defaults = {f.name: f.default for kind in kinds for f in fields(kind)}
    dc.configure(pipe, **{**defaults, "batch_rule": "mean", **ONE_FIRST_BLOCK, **chosen})
    tokens = sample(pipe, sampling)
    num_branches = sampling.num_branches
    steps = dc.summary(pipe).steps[-sampling.num_steps * num_branches :]
    branches = [steps[i::num_branches] for i in range(num_branches)]
    prunes = chosen["rule"] == "dbprune"
    return Ran(
        tokens,
        tuple(tuple(s.step for s in branch if s.skipped) for branch in branches),
        tuple({s.step: s.diff for s in branch if s.diff is not None} for branch in branches),
        tuple(_num_skipped(branch) if prunes else () for branch in branches),
    )


def _num_skipped(steps) -> tuple[int, ...]:
    skipped = (sum(stop - start for start, stop in step.skipped) for step in steps)
    return tuple(filter(None, skipped))


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()
