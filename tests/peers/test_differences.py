"""Where cache-dit 1.5.3 is wrong: what it does, and what ours does instead, side by side."""

import math

import pytest

pytest.importorskip("cache_dit", reason='cache-dit is not installed: pip install -e ".[peers]"')

import cache_dit
import torch
from cache_dit.caching.cache_contexts.calibrators.taylorseer import TaylorSeerState
from torch import nn

import dit_cachegraph as dc
from dit_cachegraph.demo.flux_scenes import load_pipeline
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from support.peer_runs import (
    Sampling,
    calls_of,
    our_pipeline,
    peer_config,
    peer_transformer,
    relative_error,
    run_ours,
    run_peer,
    sample,
)

pytestmark = [pytest.mark.peers, pytest.mark.e2e]

PLAIN = Sampling(9)
SAME_OUTPUT, WRONG_OUTPUT = 1e-5, 0.02


@pytest.fixture(autouse=True, scope="module")
def fresh_dynamo():
    """Instead of the one for each test: all tests here share one compiled model."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def ours():
    return our_pipeline()


@pytest.fixture
def transformer(ours):
    """Ours, with nothing kept, for settings that a test gives."""
    dc.reset(ours)
    return ours.transformer


def outputs(model, calls):
    with torch.no_grad():
        return [model(**kwargs)[0] for kwargs in calls]


def worst_error(got, wanted):
    return max(relative_error(g, w) for g, w in zip(got, wanted, strict=True))


def configured(ours, **settings):
    """Every step after the warm-up reuses, unless it is told otherwise."""
    always = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2, "Fn_compute_blocks": 1}
    plain = {"Bn_compute_blocks": 0, "steps_computation_mask": None, "batch_rule": "mean"}
    dc.configure(ours, **{**always, **plain, **settings})


def test_first_and_last_blocks_that_overlap(ours):
    settings = {"Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "residual_diff_threshold": 0.0}
    peer = run_peer(PLAIN, settings)
    # The four blocks that are both first and last run twice, though no step was reused.
    assert peer.hits == ((),)
    assert relative_error(peer.tokens, sample(load_pipeline(), PLAIN)) > 0.1
    sample(ours, PLAIN)
    with pytest.raises(dc.InvalidConfig, match="=8 is more than the 12 blocks"):
        dc.configure(ours, **settings)


def test_a_region_of_no_blocks(ours):
    settings = {"Fn_compute_blocks": 8, "Bn_compute_blocks": 4, "residual_diff_threshold": 0.3}
    settings["max_warmup_steps"] = 2
    # The pictures are the same: cache-dit counts hits that skip nothing.
    peer, mine = run_peer(PLAIN, settings), run_ours(ours, PLAIN, settings)
    assert len(peer.hits[0]) > 0 and mine.hits == ((),)
    assert relative_error(mine.tokens, peer.tokens) < SAME_OUTPUT


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_steps_past_the_end_of_a_mask(ours, policy):
    settings = {"steps_computation_mask": (1, 1, 0, 1, 0, 1), "steps_computation_policy": policy}
    settings |= {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    # Its own text says that a mask covers all steps; past the end it reuses, ours computes.
    assert run_peer(PLAIN, settings).hits == ((2, 4, 6, 7, 8),)
    assert run_ours(ours, PLAIN, settings).hits == ((2, 4),)
    assert dc.summary(ours).steps[-1].reason == "past the mask's 6 steps"


def test_a_mask_that_begins_with_a_reused_step(ours):
    settings = {"steps_computation_mask": (0, 1, 0, 0, 1, 0, 0, 0, 1)}
    settings |= {"steps_computation_policy": "static", "max_warmup_steps": 0}
    with pytest.raises(AssertionError, match="residual_buffer must be set"):
        run_peer(PLAIN, settings)
    assert run_ours(ours, PLAIN, settings).hits == ((2, 3, 5, 6, 7),)


def test_guidance_that_nobody_declared(ours):
    settings = {"residual_diff_threshold": 0.26, "max_warmup_steps": 4}
    guided = Sampling(12, guidance=5.0)
    uncached = sample(load_pipeline(), guided)
    # One after the other, the two branches are compared with each other, and where they are alike
    # one gets the other's residual.
    undeclared = run_peer(guided, {**settings, "enable_separate_cfg": False})
    assert undeclared.hits[1] == ()
    declared, mine = run_peer(guided, settings), run_ours(ours, guided, settings)
    assert mine.hits == declared.hits
    assert min(map(len, mine.hits)) >= 4
    mixed, apart = (relative_error(ran.tokens, uncached) for ran in (undeclared, mine))
    assert mixed > 0.2 and mixed > 2 * apart


def test_guidance_that_was_declared_and_is_not_there(ours):
    settings = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    peer = run_peer(PLAIN, {**settings, "enable_separate_cfg": True})
    # Every second call is taken for the other branch: 9 calls are 5 steps, and the warm-up doubles.
    assert peer.hits == ((2, 3, 4),)
    assert run_ours(ours, PLAIN, settings).hits == ((2, 3, 4, 5, 6, 7, 8),)


def test_a_second_image_without_its_pipeline(ours, transformer):
    first, second = calls_of(Sampling(6)), calls_of(Sampling(6, first_prompt=4))
    always = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    alone = outputs(peer_transformer(**always), second)
    peer = peer_transformer(**always, num_inference_steps=6)
    outputs(peer, first)
    # Its new image begins one call late: the first step has the residual of the image before.
    late = outputs(peer, second)
    assert relative_error(late[0], alone[0]) > WRONG_OUTPUT
    assert worst_error(late, alone) > WRONG_OUTPUT
    configured(ours, num_inference_steps=6)
    outputs(transformer, first)
    assert worst_error(outputs(transformer, second), alone) < SAME_OUTPUT
    configured(ours, num_inference_steps=None)
    assert [step.hit for step in dc.summary(ours).steps[-6:]] == [False] * 2 + [True] * 4


def test_two_requests_in_turn(ours, transformer):
    requests = [calls_of(Sampling(6, first_prompt=prompt)) for prompt in (0, 4)]
    always = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    alone = [outputs(peer_transformer(**always), calls) for calls in requests]
    in_turn = [kwargs for both in zip(*requests, strict=True) for kwargs in both]
    # Four calls to warm up are two steps of each; then all is reused from the second request.
    peer = outputs(peer_transformer(**{**always, "max_warmup_steps": 4}), in_turn)
    assert worst_error(peer[::2], alone[0]) > WRONG_OUTPUT
    assert worst_error(peer[1::2], alone[1]) < SAME_OUTPUT
    configured(ours)
    mine = outputs(transformer, in_turn)
    assert worst_error(mine[::2], alone[0]) < SAME_OUTPUT
    assert worst_error(mine[1::2], alone[1]) < SAME_OUTPUT


def test_a_sample_does_not_pay_for_its_neighbours(ours):
    barely_hits = {"residual_diff_threshold": 1e-6, "max_warmup_steps": 2}
    mean = run_ours(ours, PLAIN, barely_hits).diffs[0][2]
    worst = run_ours(ours, PLAIN, {**barely_hits, "batch_rule": "max"}).diffs[0][2]
    assert worst > 1.01 * mean
    settings = {"residual_diff_threshold": (mean + worst) / 2, "max_warmup_steps": 2}
    assert 2 in run_peer(PLAIN, settings).hits[0]
    assert 2 not in run_ours(ours, PLAIN, {**settings, "batch_rule": "max"}).hits[0]


def test_a_forecast_from_two_computed_steps(ours):
    replay = {"residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    forecast = {**replay, "predictor": "taylorseer", "taylorseer_order": 1}
    # Two values make a line; cache-dit has a derivative from the third step on, and replays.
    its_replay, its_forecast = (run_peer(PLAIN, settings).tokens for settings in (replay, forecast))
    assert relative_error(its_forecast, its_replay) == 0
    assert relative_error(run_ours(ours, PLAIN, replay).tokens, its_replay) < SAME_OUTPUT
    assert relative_error(run_ours(ours, PLAIN, forecast).tokens, its_replay) > WRONG_OUTPUT


@pytest.mark.parametrize("computed", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 6)])
def test_a_forecast_of_order_two_of_a_parabola(computed):
    values = {step: torch.tensor([float(step**2)]) for step in computed}
    state = TaylorSeerState(n_derivatives=2)
    for step in range(computed[-1] + 1):
        state.mark_step_begin()
        if step in values:
            state.update(values[step])
    state.mark_step_begin()
    asked = computed[-1] + 1
    # Both take the slope in the middle of the last gap. By that gap alone cache-dit divides the
    # difference of two slopes too, however far they are apart.
    gap = computed[-1] - computed[-2]
    wanted = asked**2 - gap
    assert (state.approximate().item() == pytest.approx(wanted)) is (gap == 1)
    weights = TaylorSeer(taylorseer_order=2).weights(computed, asked)
    weighted = (weight * values[s] for weight, s in zip(weights, computed, strict=True))
    assert sum(weighted).item() == pytest.approx(wanted)


def test_a_bound_on_pruned_steps(ours):
    settings = {"rule": "dbprune", "residual_diff_threshold": 1.0, "max_warmup_steps": 2}
    settings |= {"max_cached_steps": 2}
    # The step that reaches the bound counts from its first pruned block on: the others compute.
    peer, mine = run_peer(PLAIN, settings), run_ours(ours, PLAIN, settings)
    assert (peer.hits, peer.num_pruned) == (((2, 3),), ((11, 1),))
    assert (mine.hits, mine.num_pruned) == (((2, 3),), ((11, 11),))


def test_a_bound_on_the_sum_of_diffs_of_pruned_blocks(ours):
    settings = {"rule": "dbprune", "residual_diff_threshold": 0.8, "max_warmup_steps": 2}
    plain, bound = settings, settings | {"max_accumulated_residual_diff_threshold": 0.1}
    # Its own count of DBPrune adds nothing up; ours adds the mean of each step.
    assert run_peer(PLAIN, bound).hits == run_peer(PLAIN, plain).hits
    assert len(run_ours(ours, PLAIN, bound).hits[0]) < len(run_ours(ours, PLAIN, plain).hits[0])


def test_a_dynamic_threshold_under_guidance(ours):
    guided = Sampling(9, guidance=5.0)
    settings = {"rule": "dbprune", "residual_diff_threshold": 0.05, "max_warmup_steps": 2}
    settings |= {"enable_dynamic_prune_threshold": True, "max_dynamic_prune_threshold": 0.4}
    # Where its second pass looks for the mean of a step's diffs, there are those of the first.
    peer, mine = run_peer(guided, settings), run_ours(ours, guided, settings)
    assert peer.num_pruned[1] != mine.num_pruned[1]
    alone = {**settings, "enable_dynamic_prune_threshold": False}
    assert run_peer(guided, alone).num_pruned == run_ours(ours, guided, alone).num_pruned


def test_values_of_pruned_blocks(ours):
    settings = {"rule": "dbprune", "residual_diff_threshold": 0.2, "max_warmup_steps": 4}
    settings |= {"predictor": "taylorseer"}
    values = {**settings, "calibrator_cache_type": "hidden_states"}
    # What a block added to the text is put in the text's place there.
    for each, is_wrong in ((settings, False), (values, True)):
        error = relative_error(run_peer(PLAIN, each).tokens, run_ours(ours, PLAIN, each).tokens)
        assert (error > WRONG_OUTPUT) is is_wrong and (error < SAME_OUTPUT) is not is_wrong, error


def test_a_misspelt_option(ours):
    config = peer_config({})
    config.update(residual_dif_threshold=0.5)
    assert config == peer_config({})
    with pytest.raises(dc.InvalidConfig, match="did you mean residual_diff_threshold"):
        dc.configure(ours, residual_dif_threshold=0.5)


class Block(nn.Module):
    """Adds to its input, in place or not: the numbers are the same."""

    def __init__(self, in_place):
        super().__init__()
        self.linear, self.in_place = nn.Linear(8, 8), in_place

    def forward(self, hidden_states):
        if not self.in_place:
            return hidden_states + 0.1 * self.linear(hidden_states)
        hidden_states += 0.1 * self.linear(hidden_states)
        return hidden_states


class Blocks(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(in_place) for _ in range(4))
        self.eval().requires_grad_(False)

    def forward(self, hidden_states, timestep):
        hidden_states = hidden_states * (1 + 0.01 * timestep)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return hidden_states


BLOCK_STEPS = [(torch.ones(1, 4, 8), torch.tensor([9.0 - i])) for i in range(6)]


@pytest.mark.parametrize("in_place", [False, True])
def test_blocks_that_write_to_their_input_for_cache_dit(in_place):
    model = Blocks(in_place)
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=model.blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
    )
    config = peer_config({"residual_diff_threshold": 0.9, "max_warmup_steps": 1})
    cache_dit.enable_cache(adapter, cache_config=config)
    for step in BLOCK_STEPS:
        model(*step)
    (stats, *_) = cache_dit.summary(model, logging=False)
    # In place, its snapshot of the input is the output: 0 / 0, and it never says so.
    assert stats.cached_steps == ([] if in_place else [1, 2, 3, 4, 5])
    assert all(math.isnan(diff) == in_place for diff in stats.residual_diffs.values())


def test_blocks_that_write_to_their_input_for_ours():
    """As blocks that do not: the same decisions and the same outputs."""
    options = {"inner_backend": "eager", "residual_diff_threshold": 0.9, "max_warmup_steps": 1}
    outputs, hits = [], []
    for in_place in (True, False):
        model = Blocks(in_place)
        compiled = torch.compile(model, backend="cachedit", options=options)
        with torch.no_grad():
            outputs.append([compiled(*step) for step in BLOCK_STEPS])
        hits.append([step.hit for step in dc.summary(model).steps])
        assert dc.summary(model).refusals == ()
    assert worst_error(*outputs) < SAME_OUTPUT
    assert hits[0] == hits[1] == [False, True, True, True, True, True]
