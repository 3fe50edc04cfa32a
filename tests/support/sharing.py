"""What the tests of a file share in rooms whose `conftest.py` takes it from here."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def fresh_dynamo() -> Iterator[None]:
    """The tests of a file share what Dynamo compiles, which would be most of their time. What they
    are about lies in the state of their own models; where graphs are counted, a test resets."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()
