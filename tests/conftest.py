import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples at every run, however slow the machine is at the moment.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test compiles for itself: Dynamo keeps what it compiled by code object."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
