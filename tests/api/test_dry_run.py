"""Dry runs, the simulation that they feed, and frozen decisions."""

import json

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.config import resolve
from dit_cachegraph.dry_run import trials
from dit_cachegraph.policy.predictors.damped_line import DampedLine
from dit_cachegraph.policy.predictors.replay import Replay
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.policy.rules.even import EvenSchedule
from dit_cachegraph.simulate import simulate
from oracles.dbcache import EagerOracle
from support.running import compile_cached, run_all
from support.sharing import fresh_dynamo as fresh_dynamo
from support.tiny_models import FLUX, SD3, WAN, trajectory
from support.two_models import TwoModels

DEPTH = 4
SETTINGS = {"Fn_compute_blocks": 1, "max_warmup_steps": 2}


def steps_of(tiny, model, num_steps: int = 10, seed: int = 0, batch: int = 2):
    inputs = tiny.make_inputs(model, batch=batch, size=3, text_tokens=5, seed=seed)
    return list(trajectory(tiny, inputs, num_steps, seed=seed))


@pytest.mark.parametrize("tiny", [FLUX, SD3, WAN], ids=lambda tiny: tiny.name)
def test_thresholds_reuse_what_real_runs_do(tiny):
    """The latents of these runs don't depend on the model, so that a real run at each threshold
    must reuse as many steps, with the error that the guard can't see on a reused step: that of an
    eager oracle's output is not asked for here."""
    model = tiny.build(DEPTH)
    steps = steps_of(tiny, model)
    compiled = compile_cached(model, **SETTINGS, dry_run=[0.1, 0.2, 0.4])
    ran = run_all(compiled, steps)
    assert {step.reason for step in ran} == {"dry run"}
    report = dc.summary(compiled)
    assert [trial.threshold for trial in report.trials] == [0.1, 0.2, 0.4]
    for trial in report.trials:
        oracle = EagerOracle(model, tiny.block_lists, tiny.stream_outputs,
                             residual_diff_threshold=trial.threshold, **SETTINGS)  # fmt: skip
        hits = [oracle.step(**kwargs).hit for kwargs in steps]
        assert (trial.num_reused, trial.num_steps) == (sum(hits), len(hits))
        assert trial.share_of_blocks_saved == pytest.approx(sum(hits) / len(hits) * 3 / 4)
        assert (trial.largest_error > 0) == any(hits)
        assert str(trial) in str(report)
    # A first order one misses something else, and nothing is compiled for it.
    dc.configure(compiled, taylorseer_order=1)
    assert [t.mean_error for t in dc.summary(compiled).trials] != [
        t.mean_error for t in report.trials
    ]
    dc.configure(compiled, dry_run=None)
    assert any(step.hit for step in run_all(compiled, steps))


def test_after_a_dry_run_any_rule_may_follow():
    """Its recordings stay, and say nothing of a rule that decides on several regions."""
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS, dry_run=[0.1])
    run_all(compiled, steps_of(WAN, model))
    assert dc.summary(compiled).trials
    dc.configure(compiled, dry_run=None, rule="dbprune")
    run_all(compiled, steps_of(WAN, model, seed=1))
    assert dc.summary(compiled).trials == ()


def straight(num_steps: int) -> list[Recorded]:
    """A stream of ones whose effect at step s is s for the first sample, 2 s for the second."""
    factors = torch.tensor([[1.0], [2.0]])
    return [
        Recorded(s * factors, (s * factors.expand(2, 3),), (torch.full((2, 3), 10.0),))
        for s in range(1, num_steps + 1)
    ]


def test_a_simulation_in_closed_form():
    rule = EvenSchedule(every=3, max_warmup_steps=2)
    replayed = simulate(rule, Replay(), straight(6))
    assert [d.hit for d in replayed.decisions] == [False, False, True, True, False, True]
    # The worst sample: 2 and 4 of a stream of 10.
    assert [error or 0.0 for error in replayed.errors] == pytest.approx([0, 0, 0.2, 0.4, 0, 0.2])
    forecast = simulate(rule, TaylorSeer(taylorseer_order=1), straight(6))
    assert forecast.largest_error == pytest.approx(0.0, abs=1e-6)
    assert (replayed.num_reused, replayed.mean_error) == (3, pytest.approx(0.8 / 3))


def bent(num_steps: int) -> list[Recorded]:
    """An effect that goes up until step 3, where the first sample turns back; the second goes on,
    four times as fast."""
    rows = [[[min(s, 6.0 - s)], [4.0 * s]] for s in range(num_steps)]
    effects = [torch.tensor(row).expand(2, 3) for row in rows]
    return [Recorded(None, (effect,), (torch.full((2, 3), 10.0),)) for effect in effects]


def test_what_is_fitted_to_each_sample_is_simulated_as_it_runs():
    """At step 7 the first is at -1, and from 3 and 0 a quarter of the line leads to -0.25. The
    second is met."""
    rule = EvenSchedule(every=3, max_warmup_steps=1)
    ran = simulate(rule, DampedLine(), bent(8))
    assert [d.hit for d in ran.decisions] == [False, True, True, False, True, True, False, True]
    assert ran.errors[7] == pytest.approx(0.075)
    whole = simulate(rule, DampedLine(damped_line_least=1), bent(8))
    assert whole.errors[7] == pytest.approx(0.0, abs=1e-6)


def test_a_simulated_threshold_compares_with_the_last_computed_step():
    """|s - a| / |a|: 1 at step 1, 1/2 at step 2; then of 3: 1/3, 2/3."""
    rule = DBCache(residual_diff_threshold=0.5, max_warmup_steps=0)
    ran = simulate(rule, Replay(), straight(6))
    assert [d.hit for d in ran.decisions] == [False, False, False, True, False, True]
    assert [d.diff for d in ran.decisions[1:]] == [
        pytest.approx(x) for x in (1.0, 0.5, 1 / 3, 2 / 3, 0.2)
    ]


def one_moves(num_steps: int, is_noise_told: bool = False) -> list[Recorded]:
    """The first sample's effect goes up by a tenth of the stream a step, the second's stays."""
    factors, stream = torch.tensor([[1.0], [0.0]]).expand(2, 3), torch.full((2, 3), 10.0)
    noises = [1 - s / num_steps if is_noise_told else None for s in range(num_steps)]
    return [Recorded(None, (s * factors,), (stream,), noise) for s, noise in enumerate(noises)]


def reused(settings, recording) -> int:
    (trial,) = trials(resolve(settings), [recording], num_blocks=1, num_skipped=1)
    return trial.num_reused


def test_a_simulated_batch_goes_by_the_error_that_its_rule_goes_by():
    """By the worst a step misses as much as is allowed, by the mean half of it."""
    settings = {"rule": "error_control", "dry_run": [0.1], "predictor": "replay"}
    assert reused(settings, one_moves(8)) == 0
    assert reused({**settings, "batch_rule": "mean"}, one_moves(8)) == 2


def test_a_simulated_image_has_as_many_steps_as_was_said():
    """Where no timestep tells the noise, levels are even over so many."""
    settings = {"rule": "error_control", "paced_over": "noise", "predictor": "replay"}
    settings |= {"dry_run": [0.4]}
    told = reused(settings, one_moves(8, is_noise_told=True))
    assert reused({**settings, "num_inference_steps": 8}, one_moves(8)) == told
    assert reused(settings, one_moves(8)) != told


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dry_run": [-1]}, "dry_run must be a finite number of at least 0, got -1"),
        ({"dry_run": ["x"]}, "dry_run must be a finite number"),
        ({"dry_run": [0.1], "rule": "dbprune"}, "dry_run needs a rule with one region, and 'dbpru"),
        (
            {"dry_run": [0.1], "important_condition_threshold": 0.1},
            "dry_run keeps a sample of what is compared, which doesn't show whole tokens: leave im",
        ),
    ],
)
def test_refused(settings, sentence):
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS)
    run_all(compiled, steps_of(WAN, model, num_steps=1))
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(compiled, **settings)


def test_a_rule_without_a_threshold_has_none_to_try():
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, every=2, dry_run=[0.1])
    with pytest.raises(dc.InvalidConfig, match="the rule 'even' has no threshold to try"):
        run_all(compiled, steps_of(WAN, model, num_steps=1))


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_frozen_decisions_are_those_of_the_run(tiny, host_copies):
    model = tiny.build(DEPTH)
    steps = steps_of(tiny, model)
    compiled = compile_cached(
        model, **SETTINGS, residual_diff_threshold=0.3, taylorseer_order=1, batch_rule="mean"
    )
    first = run_all(compiled, steps)
    hits = [step.hit for step in first]
    assert 2 < sum(hits) < 8
    config = json.loads(json.dumps(dc.summary(compiled).as_config()))
    assert config["compute_mask"] == [int(not hit) for hit in hits]
    frozen = compile_cached(model, **config)
    # Within a request a schedule waits for nothing.
    host_copies.clear()
    with dc.request("A"):
        again = run_all(frozen, steps)
    assert host_copies == []
    assert [step.hit for step in again] == hits
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one.output, other.output)
    # Another batch, on which the threshold would decide otherwise.
    assert [s.hit for s in run_all(frozen, steps_of(tiny, model, seed=5, batch=1))] == hits


def test_an_image_within_a_request_is_frozen_with_what_it_was_drawn_by():
    """Its settings are its own, and so are its region and its predictor; the model's are others,
    and change after it."""
    model = WAN.build(DEPTH)
    steps = steps_of(WAN, model)
    compiled = compile_cached(model, rule="dbprune", predictor="replay")
    own = {**SETTINGS, "residual_diff_threshold": 1.0, "predictor": "taylorseer"}
    with dc.request("A", rule="dbcache", **own):
        first = run_all(compiled, steps)
    dc.configure(compiled, predictor="foca")
    config = dc.summary(compiled).as_config()
    assert config["predictor"] == "taylorseer" and config["fixed_region"] == [1, DEPTH]
    again = run_all(compile_cached(model, **config), steps)
    assert [step.hit for step in again] == [step.hit for step in first]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one.output, other.output)


def test_guidance_branches_are_frozen_together():
    """A step computes on both if it did on either."""
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS, residual_diff_threshold=0.3)
    both = [steps_of(WAN, model, seed=seed) for seed in (0, 3)]
    hits = []
    for pair in zip(*both, strict=True):
        hits.append([ran.hit for ran in run_all(compiled, pair)])
    assert any(a != b for a, b in hits)
    mask = dc.summary(compiled).as_config()["compute_mask"]
    assert mask == [int(not (a and b)) for a, b in hits]
    # An image after them has decisions of its own alone.
    alone = steps_of(WAN, model, seed=9)
    hits_alone = [ran.hit for ran in run_all(compiled, alone)]
    mask = dc.summary(compiled).as_config()["compute_mask"]
    assert mask == [int(not hit) for hit in hits_alone]


def test_what_cannot_be_frozen():
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, rule="dbprune")
    with pytest.raises(dc.InvalidConfig, match="nothing is cached here"):
        dc.summary(compiled).as_config()
    run_all(compiled, steps_of(WAN, model, num_steps=1))
    with pytest.raises(dc.InvalidConfig, match="3 regions decide for themselves"):
        dc.summary(compiled).as_config()
    dc.configure(compiled, rule="dbcache", Fn_compute_blocks=DEPTH)
    run_all(compiled, steps_of(WAN, model, num_steps=1))
    with pytest.raises(dc.InvalidConfig, match="let no block be skipped"):
        dc.summary(compiled).as_config()


def test_what_skips_different_blocks_cannot_be_frozen():
    """By the settings of its last step all hits would skip as many."""
    model = WAN.build(DEPTH)
    compiled = compile_cached(model, **SETTINGS, residual_diff_threshold=1.0)
    steps = steps_of(WAN, model)
    run_all(compiled, steps)
    assert dc.summary(compiled).as_config()["fixed_region"] == [1, 4]
    run_all(compiled, steps[:5])
    dc.configure(compiled, Bn_compute_blocks=1)
    run_all(compiled, steps[5:])
    with pytest.raises(dc.InvalidConfig, match=r"skipped different blocks, .*\(1, 3\).*\(1, 4\)"):
        dc.summary(compiled).as_config()


def test_of_two_models_each_is_frozen_alone():
    pipe = TwoModels(WAN.build(DEPTH), WAN.build(DEPTH))
    for name, warmup in (("transformer", 2), ("transformer_2", 4)):
        model = pipe.components[name]
        settings = {"Fn_compute_blocks": 1, "max_warmup_steps": warmup}
        compiled = compile_cached(model, **settings, residual_diff_threshold=1.0)
        run_all(compiled, steps_of(WAN, model, num_steps=6))
    with pytest.raises(dc.InvalidConfig, match="2 models decide for themselves here: freeze each"):
        dc.summary(pipe).as_config()
    masks = [dc.summary(m).as_config()["compute_mask"] for m in pipe.components.values()]
    assert masks == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]


def test_a_branch_may_go_by_the_diff_of_the_one_before_it():
    """cfg_diff_compute_separate=False: the second pass of a step decides as the first one did."""
    model = WAN.build(DEPTH)
    cond, uncond = (steps_of(WAN, model, seed=seed) for seed in (0, 3))
    uncond = [
        {**u, "hidden_states": c["hidden_states"], "timestep": c["timestep"]}
        for c, u in zip(cond, uncond, strict=True)
    ]
    diffs = {}
    for separate in (True, False):
        compiled = compile_cached(
            model, **SETTINGS, residual_diff_threshold=0.25, cfg_diff_compute_separate=separate
        )
        pairs = [run_all(compiled, pair) for pair in zip(cond, uncond, strict=True)]
        diffs[separate] = [(a.diff, b.diff) for a, b in pairs]
    assert all(a != b for a, b in diffs[True][2:])
    assert all(a == b for a, b in diffs[False][2:])
    assert [a for a, _ in diffs[False]] == [a for a, _ in diffs[True]]
