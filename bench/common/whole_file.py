"""Files that are whole or not there."""

from pathlib import Path

import torch


def save_whole(content: object, path: Path) -> None:
    """As `torch.save`; what a stop in the middle of it leaves has another name."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(content, unfinished)
    unfinished.replace(path)
