"""What is measured against what: eager, plain `torch.compile`, and this package's backend, by
default, with `frozen_weights`, and loaded in place of compiled."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dit_cachegraph
from bench.speed.flux import Inputs
from dit_cachegraph.backend import cachedit

EAGER, PLAIN, CACHEDIT, FROZEN = "eager", "plain", "cachedit", "frozen"
ENGINES = (EAGER, PLAIN, CACHEDIT, FROZEN)
LOADED = "loaded"
"""What another process has compiled: measured from the call of `load` on."""
PEER_COMPILED = "cache-dit-compiled"
"""The peer's DBCache under `torch.compile`; it has to be installed, and is made by `rivals`."""
BLOCKS = "cachedit-blocks"
"""This package's backend on `compile_repeated_blocks`: each kind of block is compiled once, the
rest of the model runs eagerly. It is made by `rivals` as well."""
OURS = (CACHEDIT, FROZEN, LOADED)

# F1B0, as the field measures hits: one block before the decision and none after the region.
CACHE_SETTINGS: Mapping[str, object] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "max_warmup_steps": 0,
}
# Above zero, so that a computed step also works out and compares its diff, as ordinary ones do.
NEVER_HITS = 1e-9
ALWAYS_HITS = 1.0

Model = Callable[..., tuple[Tensor]]


@dataclass(frozen=True, slots=True)
class DynamoCounts:
    """What Dynamo did so far. `num_frames` counts every compilation, also those that fail."""

    num_graphs: int
    num_breaks: int
    num_frames: int


def dynamo_counts() -> DynamoCounts:
    """The counts of this process."""
    return DynamoCounts(
        num_graphs=counters["stats"]["unique_graphs"],
        num_breaks=sum(counters["graph_break"].values()),
        num_frames=counters["frames"]["total"],
    )


@dataclass(frozen=True, slots=True)
class CompiledCounts:
    """Of one engine: the graphs and breaks of its first call, and compilations of later ones."""

    num_graphs: int
    num_breaks: int
    num_recompiles: int


def compile_for(engine: str, model: nn.Module, inner: str = "inductor") -> Model:
    """The model as `engine` runs it; nothing is compiled before the first call."""
    if engine == EAGER:
        return model
    if engine == PLAIN:
        return torch.compile(model, backend=inner)
    options = {**_options(inner), "frozen_weights": engine == FROZEN}
    # The function and not its name, which only an installed package has an entry point for.
    return torch.compile(model, backend=cachedit, options=options)  # type: ignore[arg-type]


def save_for(model: nn.Module, inputs: Inputs, folder: Path) -> None:
    """Write what `loaded` reads: the model compiled for calls like this one."""
    dit_cachegraph.precompile(model, lambda m: m(**inputs), save=folder, options=_options())


def load_for(model: nn.Module, folder: Path) -> Model:
    """The model with what `save_for` has written; an error where that isn't for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", dit_cachegraph.NotLoadedWarning)
        return dit_cachegraph.load(model, folder, _options())


def _options(inner: str = "inductor") -> dict[str, object]:
    return {**CACHE_SETTINGS, "inner_backend": inner}


def count_compiled(call: Model, image: tuple[Inputs, ...]) -> CompiledCounts:
    """Call a freshly compiled model for the steps of one image, and say what Dynamo did."""
    before = dynamo_counts()
    call(**image[0])
    first = dynamo_counts()
    for inputs in image[1:]:
        call(**inputs)
    return CompiledCounts(
        num_graphs=first.num_graphs - before.num_graphs,
        num_breaks=first.num_breaks - before.num_breaks,
        num_recompiles=dynamo_counts().num_frames - first.num_frames,
    )


def force_decision(model: nn.Module, *, hit: bool) -> None:
    """Make every later step compute or reuse, where it has something to reuse."""
    threshold = ALWAYS_HITS if hit else NEVER_HITS
    dit_cachegraph.configure(model, residual_diff_threshold=threshold)


def num_distinct_segments(model: nn.Module) -> int:
    """How many segments this package compiled for a model."""
    return sum(graph.num_compiled for graph in dit_cachegraph.summary(model).graphs)
