"""Where diffusers has the same rule, ours runs the same blocks at every step and draws the same
pictures: its MagCache and FirstBlockCache, with and without guidance.
"""

import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason='diffusers is not installed: pip install -e ".[peers]"')

from diffusers import FirstBlockCacheConfig, MagCacheConfig

# The bench is no installed package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from bench.quality.draw import Artist, Drawn, artist_for, by_ours, by_pipeline
from bench.quality.models import MODELS
from bench.quality.peers import mag_ratios

pytestmark = [pytest.mark.peers, pytest.mark.e2e]

MAX_ERROR = 1e-4
NUM_STEPS, NUM_PICTURES = 10, 2


@pytest.fixture(
    scope="module", params=["flux-scenes", pytest.param("wan-clips-guided", marks=pytest.mark.slow)]
)
def artist(request, tmp_path_factory) -> Artist:
    folder = tmp_path_factory.mktemp("uncached")
    return artist_for(MODELS[request.param], NUM_PICTURES, NUM_PICTURES, folder)


def cases(artist: Artist) -> Iterator[tuple[Mapping[str, object], object]]:
    """The same settings, as ours and as diffusers takes them."""
    ratios = mag_ratios(artist.model, NUM_STEPS)
    for threshold, most, first in itertools.product((0.03, 0.1, 0.5), (1, 3), (0.1, 0.3)):
        shared = {"mag_ratios": ratios, "max_skip_steps": most, "retention_ratio": first}
        yield (
            {"rule": "magcache", "magcache_threshold": threshold, **shared},
            MagCacheConfig(threshold=threshold, num_inference_steps=NUM_STEPS, **shared),
        )
    for threshold in (0.05, 0.1, 0.2, 0.4):
        dbcache = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "batch_rule": "mean"}
        yield (
            {"residual_diff_threshold": threshold, **dbcache},
            FirstBlockCacheConfig(threshold=threshold),
        )


def differences(ours: Drawn, theirs: Drawn) -> list[str]:
    """What is not the same, each as half a sentence."""
    found = []
    for batch, (mine, its) in enumerate(zip(ours.curves, theirs.curves, strict=True)):
        if list(mine) != pytest.approx(list(its)):
            found.append(f"ran {mine} of batch {batch}, diffusers {its}")
    error = ((ours.pictures - theirs.pictures).norm() / theirs.pictures.norm()).item()
    return [*found, f"pictures off by {error:.2g}"] if not error < MAX_ERROR else found


@pytest.mark.parametrize(
    ("every", "num_shares"), [(2, 5), pytest.param(1, 6, marks=pytest.mark.slow)]
)
def test_the_same_blocks_run_and_the_same_pictures_come_out(artist, every, num_shares):
    failed, shares = [], set()
    for settings, config in itertools.islice(cases(artist), 0, None, every):
        pipe = artist.model.load()
        pipe.transformer.enable_cache(config)
        ours = by_ours(artist, {"predictor": "replay", **settings}, NUM_STEPS)
        found = differences(ours, by_pipeline(artist, pipe, NUM_STEPS))
        failed += [f"{settings}: {'; '.join(found)}"] if found else []
        shares.add(round(ours.share, 3))
    assert not failed, "\n" + "\n".join(failed)
    # The settings matter.
    assert len(shares) >= num_shares and min(shares) < 0.5
