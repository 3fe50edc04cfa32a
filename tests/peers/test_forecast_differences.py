"""Where cache-dit 1.5.3's forecasts and masks are wrong, and what ours are: of numbers alone."""

import pytest

pytest.importorskip("cache_dit", reason='cache-dit is not installed: pip install -e ".[peers]"')

import cache_dit
import torch
from cache_dit.caching.cache_contexts.calibrators.dmd import DMDState
from cache_dit.caching.cache_contexts.calibrators.foca import FoCaState

import dit_cachegraph as dc
from dit_cachegraph.policy.predictors.dmd import DMD
from dit_cachegraph.policy.predictors.foca import FoCa

pytestmark = pytest.mark.peers


def moving_evenly(step):
    return torch.tensor([2.0 - 0.5 * step])


FORECASTS = {
    "foca over a gap": (FoCaState, FoCa, (0, 1, 2, 3, 6), (-2.5, -4.0)),
    "dmd over a gap": (DMDState, DMD, (0, 1, 4, 5), (-2.5, -4.5)),
    "dmd over no gap": (DMDState, DMD, (0, 1, 2), (0.0, -1.0)),
}


@pytest.mark.parametrize(("state", "config", "computed", "its"), FORECASTS.values(), ids=FORECASTS)
def test_a_forecast_of_what_moves_evenly(state, config, computed, its):
    asked = (computed[-1] + 1, computed[-1] + 2)
    peer, got = state(), []
    for step in range(asked[-1] + 1):
        peer.mark_step_begin()
        if step in computed:
            peer.update(moving_evenly(step))
        elif step in asked:
            got.append(peer.approximate().item())
    # FoCa takes what moved between two computed steps for what moves in one. DMD, Taylor's until
    # four values are evenly spaced, takes what moved over the last two gaps for that of the last.
    assert got == pytest.approx(its)
    values = [moving_evenly(step) for step in computed]
    for step in asked:
        assert config().estimate(values, computed, step) is None
        weights = config().weights(computed, step)
        weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
        assert sum(weighted).item() == pytest.approx(2.0 - 0.5 * step)


@pytest.mark.parametrize(("rank", "is_same"), [(0, True), (1, False)])
def test_dmd_of_evenly_spaced_values(rank, is_same):
    generator = torch.Generator().manual_seed(0)
    values = list(torch.randn(5, 1, 16, generator=generator).cumsum(0))
    peer = DMDState(rank=rank)
    for value in values:
        peer.mark_step_begin()
        peer.update(value)
    peer.mark_step_begin()
    mine = DMD(dmd_rank=rank).estimate(values, range(5), 5)
    # What no mode has of the newest value is lost there.
    assert torch.allclose(mine, peer.approximate(), rtol=1e-3, atol=1e-3) is is_same


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 7])
def test_a_mask_for_few_steps(num_steps):
    with pytest.raises(AssertionError, match="Only total_steps=4 or 6 is supported"):
        cache_dit.steps_mask(total_steps=num_steps)
    mask = dc.steps_mask(total_steps=num_steps)
    assert len(mask) == num_steps and mask[0] == mask[-1] == 1
    assert (0 in mask) is (num_steps > 2)
