"""The page: for each model rows of prompts and columns of methods, all of it in one file."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.common.decibels import decibels, mean_db
from bench.gallery.images import DIFFERENCE_TIMES, curve_svg, data_uri, difference
from bench.quality.draw import Drawn
from dit_cachegraph.metrics.pixels import psnr_db

HERE = Path(__file__).resolve().parent
# The browser itself refuses whatever is not in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PICTURE_WIDTH, CLIP_WIDTH = 128, 264  # pixels


@dataclass(frozen=True, slots=True)
class Column:
    """One method: what it drew for all prompts, one by one."""

    name: str
    drawn: Drawn


@dataclass(frozen=True, slots=True)
class Table:
    """One model; the first column is the uncached one."""

    title: str
    prompts: Sequence[str]
    columns: Sequence[Column]


def page(tables: Sequence[Table], about: str) -> str:
    """The whole page as HTML, with nothing to load."""
    bodies = "\n".join(_table(table, f"t{i}") for i, table in enumerate(tables))
    css, js = ((HERE / name).read_text() for name in ("gallery.css", "gallery.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">
<title>Caches side by side</title>
<style>{css}</style>
</head>
<body>
<h1>Caches side by side</h1>
<p>{html.escape(about)}</p>
<p>In each cell: the picture (hold it down for the uncached one), its difference to the uncached one
times {DIFFERENCE_TIMES}, and step by step the share of the blocks that ran. The red line is what
was compared at a step, where the method says so: a rule's difference, or the error seen.</p>
{bodies}
<script>{js}</script>
</body>
</html>
"""


def _table(table: Table, name: str) -> str:
    reference = table.columns[0].drawn.pictures
    heads = "".join(f"<th>{_head(column, table.columns[0])}</th>" for column in table.columns)
    rows = []
    for i, prompt in enumerate(table.prompts):
        cells = "".join(
            f"<td>{_cell(column.drawn, reference, i, f'{name}-{i}', j == 0)}</td>"
            for j, column in enumerate(table.columns)
        )
        rows.append(f"<tr><th>{html.escape(prompt)}</th>{cells}</tr>")
    title = html.escape(table.title)
    body = "\n".join(rows)
    return (
        f"<h2>{title}</h2>\n<table>\n<thead><tr><th></th>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _head(column: Column, uncached: Column) -> str:
    name = f"<b>{html.escape(column.name)}</b>"
    if column is uncached:
        return name
    mean = mean_db(psnr_db(column.drawn.pictures, uncached.drawn.pictures))
    return f"{name}<small>{column.drawn.share:.0%} of the blocks, {decibels(mean, ' dB')}</small>"


def _cell(drawn: Drawn, reference: Tensor, i: int, uncached: str, is_uncached: bool) -> str:
    picture = drawn.pictures[i]
    width = CLIP_WIDTH if picture.dim() == 4 else PICTURE_WIDTH
    if is_uncached:
        return f'<img id="{uncached}" width="{width}" alt="uncached" src="{data_uri(picture)}">'
    changed = data_uri(difference(picture, reference[i]))
    mean = mean_db(psnr_db(picture[None], reference[i][None]))
    seen = drawn.seen[i] if drawn.seen else ()
    curve = curve_svg(drawn.curves[i], seen) if drawn.curves else ""
    return (
        f'<img class="candidate" data-uncached="{uncached}" width="{width}" alt="drawn" '
        f'src="{data_uri(picture)}">'
        f'<img width="{width}" alt="difference" src="{changed}">{curve}'
        f"<small>{decibels(mean, ' dB')}</small>"
    )
