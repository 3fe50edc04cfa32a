import gc

import pytest
import torch
from hypothesis import HealthCheck, settings

from dit_cachegraph import ops

# The same examples at every run, however slow the machine is at the moment.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Dynamo makes millions of short-lived objects beside the millions of what was imported: to go
    through all of them again and again is a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def what_a_file_leaves_is_settled():
    """What was imported or kept since is gone through once, and no more."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Each test compiles for itself: Dynamo keeps what it compiled by code object."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def gradients_stay_on():
    """What a test, or what it calls, turns off and leaves off would reach the tests after it."""
    yield
    stayed_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert stayed_on, "this test left gradients turned off"


@pytest.fixture
def host_copies(monkeypatch) -> list[int]:
    """The sizes of all copies to the host from here on, in their order."""
    sizes: list[int] = []
    places: dict[object, int] = {}

    class Counted(ops.HostCopy):
        """One that counts if there is anything in it."""

        def add(self, numbers, *, are_callers=False):
            super().add(numbers, are_callers=are_callers)
            if not numbers:
                return
            if self not in places:
                places[self] = len(sizes)
                sizes.append(0)
            sizes[places[self]] += sum(each.numel() for each in numbers)

    monkeypatch.setattr(ops, "HostCopy", Counted)
    return sizes
