"""What can be trained: the models and their readers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torch import Generator, Tensor, nn

from bench.train.flow import flow_loss
from bench.train.reader import READER, make_reader, put_reader, reading_loss
from bench.train.recipes import RECIPES, Recipe
from bench.train.shelf import WEIGHTS, put_model

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Task:
    """`loss(model, count, dice)` is that of `count` new drawings; `put(folder, weights)` keeps
    the weights there, in the file `weights`."""

    name: str
    folder: str
    weights: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int, Generator], Tensor]
    put: Callable[[Path, Weights], None]
    batch_size: int
    gpu_batch_size: int


def drawing_task(recipe: Recipe) -> Task:
    """To draw what a prompt says."""
    return Task(
        name=recipe.name,
        folder=recipe.folder,
        weights=WEIGHTS,
        build=recipe.build,
        loss=partial(flow_loss, recipe),
        put=partial(put_model, recipe),
        batch_size=recipe.batch_size,
        gpu_batch_size=recipe.gpu_batch_size,
    )


def reading_task(recipe: Recipe) -> Task:
    """To say what a drawing shows."""
    return Task(
        name=f"{recipe.name}-reader",
        folder=recipe.folder,
        weights=READER,
        build=partial(make_reader, recipe.world),
        loss=partial(reading_loss, recipe.world),
        put=put_reader,
        batch_size=64,
        gpu_batch_size=512,
    )


TASKS = MappingProxyType(
    {
        task.name: task
        for recipe in RECIPES.values()
        for task in (drawing_task(recipe), reading_task(recipe))
    }
)
