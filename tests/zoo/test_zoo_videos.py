"""The zoo's models of video, of sound, and of neither."""

import pytest

from zoo.checks import check
from zoo.entries import VIDEOS, params_of
from zoo.table import TABLE, row_of

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("entry", params_of(VIDEOS), ids=str)
def test_videos(entry):
    assert row_of(check(entry)) in TABLE.read_text(), "run scripts/write_models.py"
