"""`bench.speed.passes`: what it refuses, what it compares, and one small run of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

pytest.importorskip("cache_dit", reason='cache-dit is not installed: pip install -e ".[peers]"')

from bench.speed import passes
from bench.speed.engines import CACHEDIT, PLAIN
from bench.speed.flux import HOST, NUM_IMAGE_STEPS, Depth
from bench.speed.passes import HITS, measure_passes, passes_table
from bench.speed.rivals import FLOOR, MASK, PEER, UNGUARDED

ONES = tuple(np.ones(4, np.float32) for _ in MASK)


def drawn(scale=1.0, hits=HITS, last=1.0):
    *steps, end = (step * np.float32(scale) for step in ONES)
    return passes._Drawn((*steps, end * np.float32(last)), hits)


def test_eighteen_of_28_steps_are_reused():
    assert (len(MASK), len(HITS)) == (NUM_IMAGE_STEPS, 18)


def test_who_caches_is_compared_with_ours_and_the_rest_with_plain():
    all_drawn = {PLAIN: drawn(hits=None), "regional": drawn(1 + 2e-5, None), CACHEDIT: drawn(2)}
    errors = passes._check({**all_drawn, PEER: drawn(2 + 8e-5)})
    assert errors == pytest.approx(
        {"regional to plain": 2e-5, f"{PEER} to cachedit": 4e-5}, rel=0.1
    )


@pytest.mark.parametrize(
    ("of_peer", "reason"),
    [
        (drawn(2.01), "cache-dit is 0.005 off cachedit"),
        (drawn(2, HITS[1:]), "was to reuse steps"),
        (drawn(2, last=np.nan), "cache-dit is nan off cachedit"),
    ],
)
def test_other_pictures_and_other_decisions_end_it(of_peer, reason):
    with pytest.raises(RuntimeError, match=reason):
        passes._check({PLAIN: drawn(hits=None), CACHEDIT: drawn(2), PEER: of_peer})


def test_steps_are_told_apart_by_what_was_reused():
    plain = [[2.0] * NUM_IMAGE_STEPS]
    ours = [[3.0 if computes else 1.0 for computes in MASK]]
    times = passes._times(CACHEDIT, ours, plain)
    assert (times.computed.median, times.hit.median) == (1.5, 0.5)
    assert times.image.median == pytest.approx((10 * 3 + 18) / (28 * 2))
    assert passes._times(FLOOR, ours, plain).image is None


@pytest.mark.parametrize(
    ("engines", "reason"),
    [("plain,nobody", "an engine is one of"), ("cachedit", "all are compared with plain")],
)
def test_bad_engines_are_refused(engines, reason, capsys):
    with pytest.raises(SystemExit):
        passes.main(["--engines", engines])
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.e2e
def test_all_draw_the_same_by_the_same_steps():
    engines = (PLAIN, CACHEDIT, UNGUARDED, PEER, FLOOR)
    result = measure_passes(HOST, Depth(1, 2), engines, num_rounds=1)
    assert set(result.errors) == {f"{UNGUARDED} to {CACHEDIT}", f"{PEER} to {CACHEDIT}"}
    assert all(engine in passes_table(result) for engine in engines)
