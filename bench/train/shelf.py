"""Where a trained model lies: float16 weights, configuration, words, prompts, the run's figures.

The demo's model is a part of the package, others lie in `bench/data/`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bench.train.recipes import Recipe
from bench.train.world import word_table
from dit_cachegraph.demo.flux_scenes import DATA

SHELF = Path(__file__).resolve().parent.parent / "data"
WEIGHTS, FIGURES = "model.safetensors", "figures.json"
NUM_PROMPTS = 32

Figures = dict[str, Any]
"""Of one run: its command, seed, steps, drawings, minutes, loss and machine."""


def kept_in(folder: str, shelf: Path | None = None) -> Path:
    """The folder of this name on a shelf; without one, where the project keeps that model."""
    if shelf is not None:
        return shelf / folder
    return DATA if folder == DATA.name else SHELF / folder


def put_model(recipe: Recipe, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights in float16 with all that is needed to use them."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.cpu().half().contiguous() for name, weight in weights.items()}
    save_file(halves, folder / WEIGHTS)
    write_json(folder / "config.json", dict(recipe.config))
    world = recipe.world
    write_json(folder / "words.json", list(world.words))
    prompts = [world.prompt(row) for row in world.every_kind(NUM_PROMPTS)]
    write_json(folder / "prompts.json", prompts)
    embeddings = word_table(len(world.words))
    save_file({"embeddings": embeddings}, folder / "words.safetensors")


def runs_behind(folder: Path, part: str) -> list[Figures]:
    """The runs that the weights kept there came from, oldest first, each with its own figures."""
    last: Figures = json.loads((folder / FIGURES).read_text())[part]
    before: list[Figures] = last.pop("before", [])
    last.pop("in_all", None)
    return [*before, last]


def note_figures(folder: Path, part: str, figures: Figures) -> None:
    """Sets one part of the figures that lie beside the weights."""
    path = folder / FIGURES
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**known, part: figures})


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
