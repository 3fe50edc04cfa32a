"""Settings for each block list: every step against an oracle a list, and what is refused."""

import json
import random
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

import dit_cachegraph as dc
from dit_cachegraph.config import resolve
from dit_cachegraph.policy.predictors.replay import Replay
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from dit_cachegraph.policy.rule import Decision, History, Observation, StepResult
from dit_cachegraph.policy.rules.block_lists import BlockLists
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.policy.rules.even import EvenSchedule
from oracles.dbcache import EagerOracle
from oracles.forecast import ForecastOracle
from oracles.lists import ListsOracle
from runtime.test_against_oracle import random_settings
from support.image_runs import image_of
from support.running import compile_cached, relative_error, run_step
from support.tiny_models import FLUX, WAN

DEPTH, NUM_STEPS, NUM_SETTINGS = 6, 9, 60
SIZES = (2, 4)  # of FLUX's double and single blocks


def assert_as_oracle(compiled, oracle: ListsOracle, steps) -> list[tuple[bool, ...]]:
    """Which list was reused at which step, the same for both."""
    hits = []
    for i, kwargs in enumerate(steps):
        ran, expected = run_step(compiled, kwargs), oracle.step(**kwargs)
        report = dc.summary(compiled)
        reused = iter([region in report.steps[-1].skipped for region in report.graphs[0].regions])
        hits.append(tuple(len(one.region) > 0 and next(reused) for one in oracle.oracles))
        assert hits[-1] == expected.hits, f"step {i}: {ran.reason}"
        assert relative_error(ran.output, expected.output) < 1e-5, f"step {i}: {ran.reason}"
    return hits


def plain_oracle(model, tiny, **settings) -> EagerOracle:
    return EagerOracle(model, tiny.block_lists, tiny.stream_outputs, **settings)


@pytest.mark.e2e
def test_each_list_goes_by_its_own_settings():
    """As the oracle of each list by itself, over random settings of both; all that may happen at a
    step does."""
    rng, met = random.Random(0), set()
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model)
    torch._dynamo.reset()
    counters.clear()
    for image in range(NUM_SETTINGS):
        settings = [_of_list(rng, size) for size in SIZES]
        dc.configure(compiled, block_lists=settings)
        steps = image_of(model, seed=image, size=3, num_steps=NUM_STEPS)
        makers = [partial(plain_oracle, **own) for own in settings]
        met.update(assert_as_oracle(compiled, ListsOracle(model, FLUX, makers), steps))
    assert counters["stats"]["unique_graphs"] == 1
    assert met == {(False, False), (False, True), (True, False), (True, True)}


def _of_list(rng: random.Random, size: int) -> dict[str, object]:
    settings = random_settings(rng)
    first = rng.randint(1, size)
    last = rng.randint(0, size - first)
    return {**settings, "Fn_compute_blocks": first, "Bn_compute_blocks": last}


@pytest.mark.e2e
def test_each_list_has_a_predictor_of_its_own():
    """Forecasts of two orders over two schedules; then one predictor for both, and none."""
    masks = ([1, 1, 0, 1, 0, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0, 0, 1, 0])
    orders = [
        ({"taylorseer_order": 1}, {"predictor": "taylorseer", "taylorseer_order": 2}, {}),
        ({}, {"taylorseer_order": 2}, {"predictor": "taylorseer"}),
        ({}, {"predictor": "foca"}, {}),
    ]
    taylor = [("taylorseer", 1), ("taylorseer", 2)]
    expected = [taylor, taylor, [("replay", 0), ("foca", 0)]]
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model)
    for i, ((first, second, shared), wanted) in enumerate(zip(orders, expected, strict=True)):
        static = {"steps_computation_policy": "static", "Fn_compute_blocks": 1}
        own = [{**static, "steps_computation_mask": m} for m in masks]
        dc.configure(compiled, rule="dbcache", predictor="replay")
        dc.configure(compiled, block_lists=[{**own[0], **first}, {**own[1], **second}], **shared)
        steps = image_of(model, seed=i, size=3, num_steps=NUM_STEPS)
        pairs = zip(masks, wanted, strict=True)
        makers = [partial(_forecast_oracle, mask, *name) for mask, name in pairs]
        hits = assert_as_oracle(compiled, ListsOracle(model, FLUX, makers), steps)
        assert [[int(not hit) for hit in one] for one in zip(*hits, strict=True)] == list(masks)


def _forecast_oracle(mask, name, order, model, tiny) -> ForecastOracle:
    oracle = ForecastOracle(model, tiny, mask, 1, 0)
    oracle.use(name, {"taylorseer_order": order} if name == "taylorseer" else {})
    return oracle


@pytest.mark.e2e
def test_copies_are_one_a_list_that_has_to_look(host_copies):
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model)
    looking = {"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": 0.5}
    for parts, expected in [
        ([looking, {**looking, "max_warmup_steps": 5}], [1, 1, 1, 1, 1, 2, 2]),
        ([{"every": 2}, looking], [1, 1, 1, 2, 2, 2, 2]),
        ([{"every": 2}, {"every": 3}], [0] * 7),
    ]:
        dc.configure(compiled, block_lists=parts)
        counted = []
        with dc.request(str(parts)):
            for kwargs in image_of(model, seed=7, size=3, num_steps=7):
                host_copies.clear()
                run_step(compiled, kwargs)
                counted.append(len(host_copies))
        assert counted == expected


def test_what_a_rule_remembers_is_its_own():
    """Two tables of magnitudes and a schedule without memory: each decides as it does alone."""
    tables = ([1.0, 1.02, 0.9, 1.1, 1.0, 1.05] * 2, [1.0, 1.2, 1.0, 0.7, 1.0, 1.0] * 2)
    parts = [
        {"mag_ratios": table, "magcache_threshold": 0.15, "retention_ratio": 0.1}
        for table in tables
    ]
    both = resolve({"block_lists": [parts[0], {"every": 3}, parts[1]]}).rule
    alone = [resolve(part).rule for part in (parts[0], {"every": 3}, parts[1])]
    expected = [_hits_of(rule, (4,)) for rule in alone]
    assert [list(hits) for hits in zip(*_hits_of(both, (4, 1, 2)), strict=True)] == [
        [hit for (hit,) in hits] for hits in expected
    ]
    assert len({str(hits) for hits in expected}) == 3


def test_a_list_that_begins_anew_begins_alone():
    lists = [{"force_refresh_step_hint": 3}, {"every": 2}, {"force_refresh_step_hint": 4}]
    rule = resolve({"block_lists": lists}).rule.on_trunk((2, 2, 2))
    hit = Decision(True, "hit")
    asked = [[rule.forgets(History(step=s), [hit] * k) for k in range(3)] for s in (3, 4)]
    assert asked == [[True, False, False], [False, False, True]]


def _hits_of(rule, list_sizes) -> list[tuple[bool, ...]]:
    """Twelve steps of one image, as the driver asks a rule; nothing is compared."""
    rule, history, hits = rule.on_trunk(list_sizes), History(), []
    for step in range(12):
        history, decisions = history.seen_by(rule), ()
        for _ in list_sizes:
            reason = rule.why_compute(history, decisions, None)
            reason = reason or (None if step else "new image")
            seen = Observation(earlier=decisions)
            decided = Decision(False, reason) if reason else rule.decide(history, seen)
            decisions = (*decisions, decided)
        memory = rule.remember(history, StepResult(decisions, Observation()))
        history = history.after(decisions)._replace(memory=memory)
        hits.append(tuple(decision.hit for decision in decisions))
    return hits


def test_settings_of_a_list_are_over_dbcaches_defaults():
    lists = [{"residual_diff_threshold": 0.1}, {"every": 3, "taylorseer_order": 2}, {}]
    rule = resolve({"block_lists": lists}).rule
    assert [(part.rule, part.predictor) for part in rule.block_lists] == [
        (DBCache(residual_diff_threshold=0.1), Replay()),
        (EvenSchedule(every=3), TaylorSeer(taylorseer_order=2)),
        (DBCache(), Replay()),
    ]
    # What is given is what is kept: a list that changes later changes nothing.
    lists[0]["residual_diff_threshold"] = 0.9
    assert rule.block_lists[0].rule == DBCache(residual_diff_threshold=0.1)
    # Another rule is another rule, and the trunk is one again.
    assert resolve({"block_lists": lists}, {"every": 2}).rule == EvenSchedule(every=2)
    assert isinstance(resolve({"every": 2}, {"block_lists": lists}).rule, BlockLists)
    given_as_object = resolve({"rule": rule})
    assert given_as_object.rule == rule


def test_the_report_has_them_as_json():
    compiled = compile_cached(FLUX.build(DEPTH), num_inference_steps=4)
    lists = [{"Fn_compute_blocks": 1, "Bn_compute_blocks": 1}, {"steps_computation_mask": [1, 0]}]
    dc.configure(compiled, block_lists=lists, predictor="foca")
    run_step(compiled, image_of(FLUX.build(DEPTH), size=3)[0])
    report = dc.summary(compiled)
    said = json.loads(json.dumps(report.settings[-1]))
    assert said["block_lists"] == lists and said["rule"] == "block_lists"
    assert resolve(said) == resolve({"block_lists": lists, "predictor": "foca"})
    assert report.graphs[0].regions == ((3, 6),)
    assert report.as_config()["fixed_region"] == [3, 6]
    dc.configure(compiled, block_lists=[{"Fn_compute_blocks": 1}, {}])
    run_step(compiled, image_of(FLUX.build(DEPTH), size=3)[0])
    with pytest.raises(dc.InvalidConfig, match="2 regions decide for themselves here"):
        dc.summary(compiled).as_config()


def test_one_list_is_the_trunk():
    model = WAN.build(4)
    compiled = compile_cached(model)
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 2, "residual_diff_threshold": 0.3}
    dc.configure(compiled, block_lists=[settings])
    steps = image_of(model, WAN, size=3, num_steps=NUM_STEPS)
    hits = [run_step(compiled, kwargs).hit for kwargs in steps]
    dc.configure(compiled, **settings)
    dc.reset(compiled)
    assert hits == [run_step(compiled, kwargs).hit for kwargs in steps]
    assert any(hits)


REFUSED = [
    ([], "block_lists must be a sequence of settings, one dict a block list"),
    ({"every": 2}, "block_lists must be one dict of settings a block list"),
    ([3, 4], "block_lists must be one dict of settings a block list"),
    ([{"every": 2, "Fn_compute_blocks": 1}], "no rule has all of the options"),
    ([{"max_warmup_steps": -1}], "max_warmup_steps must be an integer of at least 0, got -1"),
    ([{"enabled": False}], "enabled can't be said of one block list"),
    ([{"preset": "fast"}], "preset can't be said of one block list"),
    ([{}, {"rule": "error_control"}], "'error_control' looks at the whole model"),
    ([{"rule": "easycache"}, {}], "'easycache' looks at the whole model"),
    ([{"block_lists": [{}]}], "'block_lists' looks at the whole model"),
]


@pytest.mark.parametrize(("lists", "sentence"), REFUSED, ids=lambda x: str(x)[:40])
def test_refused(lists, sentence):
    with pytest.raises(dc.InvalidConfig, match=sentence):
        resolve({"block_lists": lists})


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        ([{}], "settings for 1 block lists, and this model has 2, of 2, 4 blocks: give one dict"),
        ([{}] * 3, "settings for 3 block lists, and this model has 2, of 2, 4 blocks"),
        ([{"Fn_compute_blocks": 3}, {}], "is more than the 2 blocks"),
        ([{}, {"rule": "teacache", "teacache_coefficients": [1.0, 0.0]}], "only block 0 has a sig"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_lists_that_the_model_has_not(lists, sentence):
    model = FLUX.build(DEPTH)
    compiled = compile_cached(model)
    run_step(compiled, image_of(model, size=3)[0])
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(compiled, block_lists=lists)
