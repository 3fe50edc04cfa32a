"""What all of this needs beside torch is optional."""

import importlib.util

import pytest

from support.sharing import fresh_dynamo as fresh_dynamo

needed = ("fastapi", "uvicorn", "prometheus_client")
if not all(map(importlib.util.find_spec, needed)):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def studio():
    from support.serving_runs import WatchedStudio  # noqa: PLC0415

    return WatchedStudio()


@pytest.fixture(scope="module")
def client(studio):
    from support.serving_runs import served  # noqa: PLC0415

    with served(studio) as client:
        client.wait_until_ready()
        yield client
