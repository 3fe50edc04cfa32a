"""Prompts from a file, one for each picture or clip."""

import json
from collections.abc import Sequence
from pathlib import Path

from dit_cachegraph.metrics.exc import CannotMeasure
from dit_cachegraph.metrics.media import Item


def read_prompts(path: Path, items: Sequence[Item]) -> list[str]:
    """One prompt a line, or a JSON list of them, in the order of the items' names.

    Raises:
        CannotMeasure: no such file, no text in UTF-8, no list in JSON, or not one prompt for each
            item.
    """
    if not path.is_file():
        raise CannotMeasure(f"the file of prompts {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CannotMeasure(f"{path} is no text in UTF-8 ({error}): save it as that") from error
    prompts = _from_json(path, text) if path.suffix == ".json" else text.splitlines()
    if len(prompts) != len(items):
        raise CannotMeasure(
            f"{path} has {len(prompts)} prompts for the {len(items)} files beside "
            f"{items[0].path}: one for each is needed, in the order of their names"
        )
    return prompts


def _from_json(path: Path, text: str) -> list[str]:
    try:
        prompts = json.loads(text)
    except json.JSONDecodeError as error:
        raise CannotMeasure(f"{path} is no JSON ({error}): a list of texts is needed") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise CannotMeasure(f"{path} must be a JSON list of texts")
    return prompts
