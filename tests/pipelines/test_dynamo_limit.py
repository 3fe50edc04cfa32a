"""Several pipelines in one process: diffusers puts one decorator around the forwards of most of its
transformers, so that they share what Dynamo allows for one code object."""

import pytest
import torch

import dit_cachegraph as dc
from support.drawing import FLUX, HITS, SD3, WAN, build, cached, draw

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_what_comes_after_the_limit_is_told_with_the_cause():
    first, second, third = (cached(build(tiny)) for tiny in (FLUX, SD3, WAN))
    with torch._dynamo.config.patch(recompile_limit=2):
        assert draw(first).hits == HITS
        assert draw(second, tiny=SD3).hits.count("H") == HITS.count("H") * SD3.num_branches
        for seed in (1, 2):
            assert draw(third, seed, WAN).hits == ""
        with pytest.raises(dc.NotCached) as raised:
            dc.check(third)
    said = str(raised.value)
    assert said.startswith("not cached: no call has come here; Dynamo has compiled `wrapper` (peft")
    assert "2 times" in said and "raise `torch._dynamo.config.recompile_limit`" in said
    assert not dc.summary(third).is_cached
    for pipe in (first, second):
        dc.check(pipe)
    torch._dynamo.reset()
    assert draw(third, tiny=WAN).hits.count("H") == HITS.count("H") * WAN.num_branches
    dc.check(third)
