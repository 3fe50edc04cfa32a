"""No false alarm: in this room a `NotCachedWarning` is an error, but where a test expects it."""

from pathlib import Path

import pytest

ROOM = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == ROOM:
            item.add_marker(pytest.mark.filterwarnings("error::dit_cachegraph.NotCachedWarning"))
