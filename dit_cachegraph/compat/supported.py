"""`supported_pipelines`: which transformers of diffusers were cached when all were last tried.

The answer is data; nothing in the package goes by it, and other models are found as well.
"""

import json
from importlib import resources
from typing import Any, NamedTuple

FILE = "supported.json"


class SupportedPipelines(NamedTuple):
    """How many, and the names of their classes."""

    num: int
    names: list[str]

    @property
    def not_cached(self) -> dict[str, str]:
        """The rest, each with its reason; a class may be cached in one form and not in another."""
        return dict(_read()["not_cached"])

    @property
    def versions(self) -> dict[str, str]:
        """Of diffusers and torch, and the date."""
        return dict(_read()["made_with"])


def supported_pipelines() -> SupportedPipelines:
    """The transformer classes that were cached, of the diffusers in `.versions`."""
    names = list(_read()["cached"])
    return SupportedPipelines(len(names), names)


def _read() -> dict[str, Any]:
    file = resources.files("dit_cachegraph") / "data" / FILE
    return json.loads(file.read_text(encoding="utf-8"))
