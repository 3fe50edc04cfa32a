"""Files that are whole or not there."""

from pathlib import Path

import torch

UNFINISHED = ".unfinished"


def save_whole(content: object, path: Path) -> None:
    """As `torch.save`; what a stop in the middle of it leaves has another name."""
    unfinished = path.with_suffix(UNFINISHED)
    torch.save(content, unfinished)
    unfinished.replace(path)


def write_whole(text: str, path: Path) -> None:
    """The same of a text."""
    unfinished = path.with_suffix(UNFINISHED)
    unfinished.write_text(text)
    unfinished.replace(path)
