"""What came of the zoo, as the table in `docs/models.md` (`python scripts/write_models.py`)."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import diffusers
import torch

from models.checks import Result
from models.entry import Entry

TABLE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
_HEAD = """# Which models are cached

Made by `python scripts/write_models.py` on {date}, with torch {torch} and diffusers {diffusers}.
Every transformer class of diffusers that has a loop over blocks is built in small and compiled;
what must hold for an entry is written in `tests/models/checks.py`. Nothing in the package reads
this table or knows these models. Where there is one graph, it was compiled with `fullgraph=True`;
where there are more, the model's own code breaks, with any backend.

{num_cached} of {num_entries} entries are cached, of {num_classes} classes.

| class | entry | blocks found | pattern | graphs |
|---|---|---|---|---|
"""
_REST = """
## Not cached

These run compiled and uncached, with the reason in the report.

| class | entry | reason | graphs |
|---|---|---|---|
"""


def row_of(result: Result) -> str:
    """One line of the table. An entry whose graph breaks outside the blocks says so."""
    entry, end = result.entry, f"| {result.num_graphs} |"
    if result.graph is None:
        return f"{_start_of(entry)} {result.reason.removeprefix('not cached: ')} {end}"
    names = ", ".join(found.name for found in result.graph.block_lists)
    patterns = dict.fromkeys(found.pattern for found in result.graph.block_lists)
    breaks = " (the graph breaks elsewhere)" if entry.breaks else ""
    return f"{_start_of(entry)} {names}{breaks} | {', '.join(patterns)} {end}"


def _start_of(entry: Entry) -> str:
    return f"| `{entry.model.__name__}` | {entry.name} |"


def with_rows(table: str, results: Sequence[Result]) -> str:
    """The table with the lines of these entries written anew."""
    lines = table.splitlines(keepends=True)
    for result in results:
        start = _start_of(result.entry)
        (i,) = [i for i, line in enumerate(lines) if line.startswith(start)]
        lines[i] = row_of(result) + "\n"
    return "".join(lines)


def table_of(results: Sequence[Result]) -> str:
    cached = [result for result in results if result.graph is not None]
    head = _HEAD.format(
        date=datetime.now(timezone.utc).date(),
        torch=torch.__version__.partition("+")[0],
        diffusers=diffusers.__version__,
        num_cached=len(cached),
        num_entries=len(results),
        num_classes=len({result.entry.model for result in results}),
    )
    rest = [result for result in results if result.graph is None]
    return head + _lines(cached) + _REST + _lines(rest)


def _lines(results: Sequence[Result]) -> str:
    return "".join(sorted(row_of(result) + "\n" for result in results))
