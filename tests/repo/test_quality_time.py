"""The times of the quality bench: whom it times, in which order, and under which names."""

import importlib.util
import sys
from pathlib import Path

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.quality.methods import all_methods
from bench.quality.models import MODELS
from bench.quality.times import OF_DIFFUSERS, Contender, contenders_of, measure


def test_what_is_timed_has_the_names_of_the_rows(tmp_path):
    names = [contender.name for contender in contenders_of(MODELS["flux-scenes"], tmp_path)]
    assert names[0] == "uncached" and len(set(names)) == len(names)
    assert set(names) <= {method.name for method in all_methods()}
    theirs = [name for name in names if name.startswith("cache-dit ")]
    assert sum(name.startswith("diffusers ") for name in names) == len(OF_DIFFUSERS)
    assert len(theirs) == 2 * (importlib.util.find_spec("cache_dit") is not None)


def test_rounds_are_interleaved_and_the_first_draw_is_not_counted():
    drawn = []
    contenders = [Contender(name, lambda name=name: drawn.append(name)) for name in "ab"]
    timed = measure(contenders, 3)
    assert "".join(drawn) == "ab" + 3 * "ab"
    assert [t.name for t in timed] == ["a", "b"]
    assert (timed[0].ratio.low, timed[0].ratio.high) == (1, 1)
