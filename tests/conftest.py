import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test compiles for itself: Dynamo keeps what it compiled by code object."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
