"""A page to look at: what each method draws at the same share of the work, side by side.

    python -m bench.gallery              gallery_out/index.html, from the rows kept in bench/results

Of each kind of method the one is shown whose measured share is nearest to --share. Pictures are
drawn one by one, so a curve is that picture's own.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.common.machine import this_machine
from bench.common.threads import use_one_thread
from bench.gallery.page import Column, Table, page
from bench.quality.draw import Artist, artist_for
from bench.quality.methods import Method, all_methods
from bench.quality.models import MODELS, NUM_PICTURES, QualityModel
from bench.quality.rows import ROWS, Row, read_rows

NUM_STEPS = 28
LARGEST_MISS = 0.12  # of the share; what is farther off isn't the same work
GROUPS = (
    "ours, error control order 1",
    "ours, even mask order 1",
    "ours, threshold",
    "cache-dit, threshold",
    "ours, DBPrune",
    "diffusers, first block",
    "diffusers, TaylorSeer lite",
    "diffusers, MagCache",
    "fewer steps, euler",
    "fewer steps, adams-bashforth",
)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gallery", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prompts", type=int, choices=range(1, NUM_PICTURES + 1), default=6)
    parser.add_argument("--share", type=float, default=0.5, help="of the block computations")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where bench.quality wrote to")
    parser.add_argument("--out", type=Path, default=Path("gallery_out"), metavar="FOLDER")
    return parser.parse_args(arguments)


def chosen_methods(rows: Sequence[Row], share: float, num_steps: int) -> list[Method]:
    """Of each of `GROUPS` the one that is nearest to the share, if it is near at all."""
    methods = {method.name: method for method in all_methods()}
    chosen = []
    for group in GROUPS:
        shares = {
            row.key.method: abs(row.share - share)
            for row in rows
            if row.group == group and row.key.num_steps == num_steps and row.key.method in methods
        }
        nearest = min(shares, key=lambda name: shares[name], default=None)
        if nearest is not None and shares[nearest] <= LARGEST_MISS:
            chosen.append(methods[nearest])
    return chosen


def draw_table(
    model: QualityModel, methods: Sequence[Method], num_prompts: int, num_steps: int
) -> Table:
    """All methods on the first prompts of a model."""
    picks = model.picks[:num_prompts]
    with tempfile.TemporaryDirectory() as folder:
        artist: Artist = artist_for(model, num_prompts, 1, Path(folder))
        columns = []
        for method in (all_methods()[0], *methods):
            print(f"{model.name}: {method.name}", flush=True)
            columns.append(Column(method.name, method.draw(artist, num_steps)))
    prompts = [model.recipe.world.prompt(row) for row in picks]
    title = f"{model.name}, guidance {model.guidance:g}, {num_steps} steps"
    return Table(title, prompts, columns)


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    use_one_thread()
    tables = []
    for name in parsed.models:
        methods = chosen_methods(read_rows(parsed.rows / f"{name}.jsonl"), parsed.share, NUM_STEPS)
        tables.append(draw_table(MODELS[name], methods, parsed.prompts, NUM_STEPS))
    about = f"Each method where it runs about {parsed.share:.0%} of the blocks. {this_machine()}."
    path = parsed.out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(tables, about), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
