"""The shipped FLUX through cache-dit and through ours: the same weights, prompts, noise, options.

cache-dit patches the class of the pipeline it is given, so it gets a subclass of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import cache_dit
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

import dit_cachegraph as dc
from dit_cachegraph.demo.tiny_flux import SIDE_ARGUMENT, embed, load_pipeline, shipped_prompts
from dit_cachegraph.policy.dbcache import DBCacheConfig

# By names that both know. The region is never left to a default, where they differ.
Options = Mapping[str, object]
ONE_FIRST_BLOCK = {"Fn_compute_blocks": 1}


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
    diffs that were compared, by step."""

    tokens: Tensor
    hits: tuple[tuple[int, ...], ...]
    diffs: tuple[Mapping[int, float], ...]


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


def peer_config(settings: Options) -> cache_dit.DBCacheConfig:
    return cache_dit.DBCacheConfig(**{**ONE_FIRST_BLOCK, **settings})


def run_peer(sampling: Sampling, settings: Options) -> Ran:
    """One image through cache-dit, which has to be told whether there are two branches."""
    pipe = peer_pipeline()
    config = peer_config({"enable_separate_cfg": sampling.num_branches == 2, **settings})
    cache_dit.enable_cache(pipe, cache_config=config)
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
    return tuple(map(tuple, hits)), tuple(_compared(d) for d in diffs)


def _compared(diffs: Mapping[str, float]) -> dict[int, float]:
    # What is not positive is a mark: no threshold, a forced hit, another shape.
    return {int(step): float(diff) for step, diff in diffs.items() if float(diff) > 0}


def our_pipeline(**options: object) -> FluxPipeline:
    """Compiled for ours; its settings change by `run_ours`."""
    pipe = load_pipeline()
    options = {"inner_backend": "eager", **ONE_FIRST_BLOCK, **options}
    pipe.transformer.compile(backend="cachedit", options=options)
    return pipe


def run_ours(pipe: FluxPipeline, sampling: Sampling, settings: Options) -> Ran:
    """One image through ours, decided by the mean of the batch as cache-dit does; whatever an
    earlier run set is back at its default."""
    defaults = {f.name: f.default for f in fields(DBCacheConfig)}
    dc.configure(pipe, **{**defaults, "batch_rule": "mean", **ONE_FIRST_BLOCK, **settings})
    tokens = sample(pipe, sampling)
    num_branches = sampling.num_branches
    steps = dc.summary(pipe).steps[-sampling.num_steps * num_branches :]
    branches = [steps[i::num_branches] for i in range(num_branches)]
    return Ran(
        tokens,
        tuple(tuple(s.step for s in branch if s.hit) for branch in branches),
        tuple({s.step: s.diff for s in branch if s.diff is not None} for branch in branches),
    )


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()
