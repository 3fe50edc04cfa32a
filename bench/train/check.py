"""What a trained model is worth, uncached: a reader's word for it, and how bent its paths are.

    python -m bench.train.check flux        prints the figures, keeps them beside the weights
    python -m bench.train.check wan         and writes the grid to docs/pictures/

A prompt's word counts as drawn if the reader, trained on drawings alone, reads it back.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from bench.common.machine import ROOT
from bench.train.grid import write_grid
from bench.train.reader import accuracy, get_reader
from bench.train.recipes import RECIPES, Recipe
from bench.train.sampling import draw, embed, load_pipeline
from bench.train.shelf import kept_in, note_figures
from dit_cachegraph.demo.codec import decode, encode

NUM_STEPS = 28
GUIDANCES = (1.0, 3.0, 5.0, 7.0)
GUIDANCES_SHOWN = (1.0, 3.0, 7.0)  # the demo draws by 3, the quality bench by the others
NUM_DRAWINGS_READ = 512
NUM_GRID = 32
PICTURES = ROOT / "docs" / "pictures"


@dataclass(frozen=True, slots=True)
class Figures:
    """All that is measured. Accuracies are shares by slot; keys of the rest are guidances."""

    prompts: int
    steps: int
    reader_on_drawings: dict[str, float]
    read_back: dict[str, dict[str, float]]
    half_the_steps_db: dict[str, float]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.train.check", description=__doc__)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--prompts", type=int, default=128, metavar="COUNT")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--shelf", type=Path, help="where the models lie")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where the grid goes")
    return parser.parse_args(arguments)


def psnr_db(one: Tensor, other: Tensor) -> float:
    """Mean over drawings in [-1, 1]."""
    errors = (one - other).square().flatten(1).mean(1)
    return (10 * (4 / errors).log10()).mean().item()


def read_drawings(recipe: Recipe, folder: Path) -> dict[str, float]:
    """The reader on new drawings as the codec leaves them: the most that a model can reach."""
    drawings, picks = recipe.world.draw(NUM_DRAWINGS_READ, Generator().manual_seed(987_654))
    reader = get_reader(folder, recipe.world)
    return accuracy(recipe.world, reader, decode(encode(drawings)), picks)


def examine(recipe: Recipe, folder: Path, num_prompts: int, num_steps: int) -> Figures:
    """Draws all prompts with and without guidance, with all and with half the steps."""
    picks = recipe.world.every_kind(num_prompts)
    pipe, text = load_pipeline(recipe, folder), embed(recipe, folder, picks)
    reader = get_reader(folder, recipe.world)
    read_back, half_db = {}, {}
    for guidance in GUIDANCES:
        whole = draw(recipe, pipe, text, num_steps=num_steps, guidance=guidance)
        half = draw(recipe, pipe, text, num_steps=num_steps // 2, guidance=guidance)
        read_back[str(guidance)] = accuracy(recipe.world, reader, whole, picks)
        half_db[str(guidance)] = psnr_db(half, whole)
    return Figures(num_prompts, num_steps, read_drawings(recipe, folder), read_back, half_db)


def table(figures: Figures) -> str:
    """One row a source of drawings."""
    slots = list(figures.reader_on_drawings)
    title = f"{figures.prompts} prompts, {figures.steps} Euler steps, uncached; read back in %"
    lines = [title, " " * 14 + "".join(f"{slot:>8}" for slot in slots) + "   half the steps"]
    sources = {f"guidance {g}": (row, g) for g, row in figures.read_back.items()}
    for name, (row, guidance) in sources.items():
        decibels = f"{figures.half_the_steps_db[guidance]:.1f} dB"
        lines.append(f"{name:14}{_cells(row)}   {decibels:>14}")
    lines.append(f"{'drawings':14}{_cells(figures.reader_on_drawings)}")
    return "\n".join(lines)


def _cells(row: dict[str, float]) -> str:
    return "".join(f"{100 * share:8.1f}" for share in row.values())


def show(recipe: Recipe, folder: Path, pictures: Path, num_steps: int) -> None:
    """Writes the grids of the first prompts."""
    picks = recipe.world.every_kind(NUM_GRID)
    pipe, text = load_pipeline(recipe, folder), embed(recipe, folder, picks)
    captions = [recipe.world.prompt(row) for row in picks]
    for guidance in GUIDANCES_SHOWN:
        path = pictures / f"{recipe.folder}-guidance-{guidance:.0f}.png"
        drawings = draw(recipe, pipe, text, num_steps=num_steps, guidance=guidance)
        write_grid(path, drawings, captions)
        print(f"{path}: uncached, guidance {guidance}")


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    recipe = RECIPES[parsed.model]
    folder = kept_in(recipe.folder, parsed.shelf)
    figures = examine(recipe, folder, parsed.prompts, parsed.steps)
    print(table(figures))
    command = f"python -m bench.train.check {recipe.name} --prompts {parsed.prompts}"
    command += f" --steps {parsed.steps}"
    note_figures(folder, "check", {"command": command, **asdict(figures)})
    show(recipe, folder, parsed.pictures, parsed.steps)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
