"""What came of the zoo, as the table in `docs/models.md` (`python scripts/write_models.py`), and
the same for `supported_pipelines`."""

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import diffusers
import torch

from zoo.checks import Result
from zoo.entry import Entry

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "models.md"
SUPPORTED = ROOT / "dit_cachegraph" / "data" / "supported.json"
_HEAD = """# Which models are cached

Made by `python scripts/write_models.py` on {date}, with torch {torch} and diffusers {diffusers}.
Every transformer class of diffusers that has a loop over blocks is built in small and compiled;
what must hold for an entry is written in `tests/zoo/checks.py`. Nothing in the package goes by
this table or knows these models; `supported_pipelines()` tells what it says. Where there is one
graph, it was compiled with `fullgraph=True`. `mochi` and `nucleus` need that: without it Dynamo
breaks them at sizes that depend on data, and they run uncached. `enable_cache` goes over to it by
itself where the first calls come out so, and `framepack`, which is cached without it alone, is
cached by `enable_cache` too. Where there are more graphs, the model's own code breaks, with any
backend, and where it breaks among the blocks these are joined at run time. A method that is *kept
whole* is one operator of the graph, by
[`dit_cachegraph.keep_whole`](authors.md#experts-that-go-by-data).

{num_cached} of {num_entries} entries are cached, of {num_classes} classes.

`weights` and `work` are the shares of the blocks in the parameters and in the floating-point
operations of the graph that they are cut from, at the sizes of these small models; where they are
joined at run time, in the operations of all lists of blocks.

| class | entry | blocks found | pattern | weights | work | graphs |
|---|---|---|---|---|---|---|
"""
_REST = """
## Not cached

These run compiled and uncached, with the reason in the report.

| class | entry | reason | graphs |
|---|---|---|---|
"""


def row_of(result: Result) -> str:
    """One line of the table. An entry whose graph breaks outside the blocks says so, and what is
    kept whole."""
    entry, end = result.entry, f"| {result.num_graphs} |"
    if result.graph is None:
        return f"{_start_of(entry)} {result.reason.removeprefix('not cached: ')} {end}"
    names = ", ".join(found.name for found in result.graph.block_lists)
    patterns = dict.fromkeys(found.pattern for found in result.graph.block_lists)
    note = " (the graph breaks elsewhere)" if entry.breaks else ""
    if result.graph.is_linked:
        note = " (a graph each)"
    if entry.experts is not None:
        note = f" (`{entry.experts.model.__name__}.{entry.experts.method}` kept whole)"
    shares = " | ".join(map(_percent, (result.graph.share_of_weights, result.graph.share_of_work)))
    return f"{_start_of(entry)} {names}{note} | {', '.join(patterns)} | {shares} {end}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


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


def supported_in(table: str) -> dict[str, object]:
    """The table as data: classes with a cached entry, and entries without, with the reason."""
    made = re.search(r"on (\S+), with torch (\S+) and diffusers (\S+)\.\n", table)
    assert made is not None
    cached, rest = (_rows(part) for part in table.split("## Not cached"))
    return {
        "made_with": dict(zip(("date", "torch", "diffusers"), made.groups(), strict=True)),
        "cached": sorted({row[0].strip("`") for row in cached}),
        "not_cached": {f"{row[0].strip('`')} ({row[1]})": row[2] for row in rest},
    }


def as_json(supported: dict[str, object]) -> str:
    """The data as it is shipped."""
    return json.dumps(supported, indent=1) + "\n"


def _rows(part: str) -> list[list[str]]:
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|", 3)] for line in lines]


def _lines(results: Sequence[Result]) -> str:
    return "".join(sorted(row_of(result) + "\n" for result in results))
