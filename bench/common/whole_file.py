"""Files that are whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def save_whole(content: object, path: Path) -> None:
    """As `torch.save`; what a stop in the middle of it leaves has another name."""
    with _put_whole(path) as unfinished:
        torch.save(content, unfinished)


def write_whole(text: str, path: Path) -> None:
    """The same of a text."""
    with _put_whole(path) as unfinished:
        unfinished.write_text(text)


@contextmanager
def _put_whole(path: Path) -> Iterator[Path]:
    unfinished = path.with_suffix(".unfinished")
    yield unfinished
    unfinished.replace(path)
