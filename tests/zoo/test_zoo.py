"""Every transformer that diffusers ships, found by walking it: images here, videos and sound in
`test_zoo_videos`."""

import importlib
import inspect
import pkgutil

import diffusers.models.transformers
import pytest
from diffusers import ModelMixin

from zoo.checks import check
from zoo.entries import ENTRIES, IMAGES, SAMPLE, params_of
from zoo.table import TABLE, row_of

pytestmark = pytest.mark.e2e

MIN_SHARE_CACHED = 0.95


def transformers_with_block_loops() -> dict[str, type[ModelMixin]]:
    """Every model class of diffusers' transformers whose source builds a list of modules."""
    package = diffusers.models.transformers
    found = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        for name, cls in vars(importlib.import_module(info.name)).items():
            is_own = inspect.isclass(cls) and cls.__module__ == info.name
            if is_own and issubclass(cls, ModelMixin) and "ModuleList" in inspect.getsource(cls):
                found[name] = cls
    return found


def test_every_class_has_an_entry():
    found = transformers_with_block_loops()
    assert len(found) >= 60
    covered = {entry.model for entry in ENTRIES}
    missing = [name for name, cls in found.items() if cls not in covered]
    assert not missing, f"{', '.join(missing)}: a ModuleList of blocks and no entry in the zoo"


def test_nearly_all_entries_are_cached():
    num_cached = sum(entry.refusal is None for entry in ENTRIES)
    assert num_cached / len(ENTRIES) >= MIN_SHARE_CACHED
    names = {entry.name for entry in ENTRIES}
    assert len(names) == len(ENTRIES)
    assert names >= SAMPLE


def test_the_table_has_a_line_for_every_entry():
    head, rest = TABLE.read_text().split("## Not cached")
    for entry in ENTRIES:
        start = f"| `{entry.model.__name__}` | {entry.name} |"
        (line,) = [line for line in (head + rest).splitlines() if line.startswith(start)]
        assert (line in rest) == (entry.refusal is not None)
        assert entry.refusal is None or entry.refusal in line


@pytest.mark.parametrize("entry", params_of(IMAGES), ids=str)
def test_images(entry):
    assert row_of(check(entry)) in TABLE.read_text(), "run scripts/write_models.py"
