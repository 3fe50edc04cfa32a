"""The rules of the field, step by step against oracles written from their sources, on hundreds of
synthetic traces; and what their options take and refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cachegraph import InvalidConfig, ops
from dit_cachegraph.config import resolve
from dit_cachegraph.policy.rule import (
    Change,
    Decision,
    History,
    Need,
    Observation,
    Rule,
    StepResult,
    Sums,
)
from dit_cachegraph.policy.rules.easycache import EasyCache
from dit_cachegraph.policy.rules.magcache import MagCache
from dit_cachegraph.policy.rules.seacache import SeaCache
from dit_cachegraph.policy.rules.teacache import TeaCache
from oracles import rules as rule_oracles

TRACES = settings(max_examples=200)
NAN, INF = math.nan, math.inf


def sums(new: np.ndarray, old: np.ndarray) -> Sums:
    """Per sample `sum|new - old|` and `sum|old|`."""
    axes = tuple(range(1, new.ndim))
    return Sums(tuple(np.abs(new - old).sum(axes)), tuple(np.abs(old).sum(axes)))


def play(rule: Rule, probes, ends=None, num_steps: int | None = None) -> list[bool]:
    """What the driver makes of a rule's answers: `probes` are compared from each step to the next,
    `ends` are the model's (inputs, outputs)."""
    history, change, last, hits = History(), None, None, []
    for step, probe in enumerate(probes):
        seen = Observation()
        if step > 0:
            seen = Observation(*sums(probe, probes[step - 1]), change=change)
        history = history.seen_by(rule, num_steps)
        reason = rule.why_compute(history, (), None) or (None if step else "new image")
        decision = Decision(False, reason) if reason else rule.decide(history, seen)
        memory = rule.remember(history, StepResult((decision,), seen))
        history = history.after([decision])._replace(memory=memory)
        hits.append(decision.hit)
        change = None
        if ends is not None and not decision.hit:
            now = (ends[0][step], ends[1][step])
            if last is not None:
                change = Change(sums(last[0], now[0]), sums(last[1], now[1]))
            last = now
    return hits


def walk(seed: int, num_steps: int, stride: float, shape: tuple[int, ...] = (2, 6)) -> np.ndarray:
    """A smooth random path [step, sample, ...] with strides of unequal length."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(num_steps, *shape))
    lengths = stride * np.exp(rng.normal(size=(num_steps, *[1] * len(shape))))
    return rng.normal(size=shape) + np.cumsum(moves * lengths, axis=0)


steps = st.integers(1, 30)
seeds = st.integers(0, 2**32 - 1)
strides = st.sampled_from([0.003, 0.02, 0.1])
thresholds = st.floats(0, 1.5)
warmups = st.integers(0, 6)


@TRACES
@given(
    seeds,
    steps,
    strides,
    thresholds,
    warmups,
    st.lists(st.floats(-2, 3), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_teacache(seed, num, stride, threshold, warmup, coefficients, mean, is_told):
    signals, told = walk(seed, num, stride), num if is_told else None
    rule = TeaCache(
        teacache_threshold=threshold,
        teacache_coefficients=tuple(coefficients),
        max_warmup_steps=warmup,
        batch_rule="mean" if mean else "max",
    )
    wanted = rule_oracles.teacache(signals, threshold, coefficients, warmup, told, mean)
    assert play(rule, signals, num_steps=told) == wanted


@TRACES
@given(seeds, steps, strides, thresholds, warmups, st.booleans(), st.booleans())
def test_easycache(seed, num, stride, threshold, warmup, mean, is_told):
    inputs, told = walk(seed, num, stride), num if is_told else None
    outputs = walk(seed + 1, num, stride)
    rule = EasyCache(
        easycache_threshold=threshold,
        max_warmup_steps=warmup,
        batch_rule="mean" if mean else "max",
    )
    wanted = rule_oracles.easycache(inputs, outputs, threshold, warmup, told, mean)
    assert play(rule, inputs, (inputs, outputs), told) == wanted


@TRACES
@given(
    st.lists(st.floats(0.8, 1.25), min_size=1, max_size=40),
    steps,
    st.floats(0, 0.5),
    st.integers(0, 6),
    st.floats(0, 1),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_magcache(ratios, num, threshold, max_skip, retention, told):
    rule = MagCache(
        mag_ratios=tuple(ratios),
        magcache_threshold=threshold,
        max_skip_steps=max_skip,
        retention_ratio=retention,
    )
    wanted = rule_oracles.magcache(ratios, num, threshold, max_skip, retention, told)
    assert play(rule, np.ones((num, 1, 1)), num_steps=told) == wanted


@TRACES
@given(
    seeds,
    st.sampled_from([(4, 4), (3, 5), (6, 1), (2, 4, 3), (1, 2, 7)]),
    st.floats(0, 1),
    st.one_of(st.none(), st.floats(0, 4)),
)
def test_the_filter_of_seacache(seed, grid, noise, power):
    signal = walk(seed, 1, 1.0, (2, *grid, 5))[0]
    tokens = torch.tensor(signal, dtype=torch.float32).flatten(1, -2)
    number = torch.tensor(noise, dtype=torch.float32)
    actual = ops.filter_noise(tokens, number, grid, len(grid) if power is None else power)
    expected = torch.tensor(rule_oracles.sea_filter(signal, noise, power)).flatten(1, -2)
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4 * scale)


@TRACES
@given(seeds, steps, strides, thresholds, warmups, st.booleans(), st.booleans())
def test_seacache(seed, num, stride, threshold, warmup, mean, is_told):
    """On signals that are filtered for the noise of their step."""
    signals, told = walk(seed, num, stride, (2, 3, 4, 2)), num if is_told else None
    noises = np.linspace(1.0, 0.1, num)
    rule = SeaCache(
        seacache_threshold=threshold,
        max_warmup_steps=warmup,
        batch_rule="mean" if mean else "max",
    )
    filtered = [rule_oracles.sea_filter(s, n, None) for s, n in zip(signals, noises, strict=True)]
    wanted = rule_oracles.seacache(signals, noises, threshold, None, warmup, told, mean)
    assert play(rule, filtered, num_steps=told) == wanted


def test_the_filter_passes_everything_of_a_clean_picture_and_only_the_mean_of_noise():
    tokens = torch.tensor(walk(0, 1, 1.0, (1, 16, 3))[0], dtype=torch.float32)
    clean = ops.filter_noise(tokens, torch.tensor(0.0), (4, 4), 2.0)
    torch.testing.assert_close(clean, tokens, rtol=1e-4, atol=1e-4)
    noise = ops.filter_noise(tokens, torch.tensor(1.0), (4, 4), 2.0)
    assert noise.std(1).max() < 1e-4 * noise.mean(1).abs().max()


def test_the_filter_is_the_same_whatever_the_default_for_new_tensors_is():
    tokens, noise = torch.tensor(walk(0, 1, 1.0, (1, 16, 3))[0]).float(), torch.tensor(0.5)
    expected, before = ops.filter_noise(tokens, noise, (4, 4), 2.0), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(ops.filter_noise(tokens, noise, (4, 4), 2.0), expected)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("rule", [TeaCache(), SeaCache()], ids=lambda rule: rule.name)
def test_a_change_that_is_not_finite_computes_and_is_forgotten(rule, bad):
    history = History(step=3, memory=0.0)
    decision = rule.decide(history, Observation((bad,), (1.0,)))
    assert (decision.hit, decision.reason) == (False, f"added up to {bad}")
    assert rule.remember(history, StepResult((decision,), Observation())) == 0.0


def test_easycache_waits_until_the_change_of_the_output_is_known():
    rule = EasyCache(easycache_threshold=1.0, max_warmup_steps=0)
    decision = rule.decide(History(step=3), Observation((0.0,), (1.0,)))
    assert (decision.hit, decision.reason) == (False, "the output's change is not known yet")


def test_what_each_needs():
    ratios = (1.0, 0.9)
    rules = [MagCache(mag_ratios=ratios), EasyCache(), TeaCache(), SeaCache()]
    assert [(rule.needs, rule.threshold) for rule in rules] == [
        (frozenset(), None),
        ({Need.DIFF, Need.OUTPUT}, 0.05),
        ({Need.DIFF}, 0.2),
        ({Need.DIFF}, 0.3),
    ]
    assert {(r.spans((3, 4))[0].start, r.spans((3, 4))[0].stop) for r in rules} == {(0, 7)}


NOT_NUMBERS = ["1", [1], (), True, False]
NOT_THRESHOLDS = [None, NAN, INF, -0.01, *NOT_NUMBERS]
NUMBER = "a finite number of at least 0"
NUMBERS = "a sequence of finite numbers"
GRID = "(height, width) or (frames, height, width)"
MAG = {"mag_ratios": (1.0, 0.9)}
# Rule, other options, name, taken, refused, what the sentence says is allowed.
OPTIONS = [
    ("magcache", {}, "mag_ratios", [(1.0,), (1, 0.9)], ["1", 1, (), (NAN,), (True,)], NUMBERS),
    ("magcache", MAG, "magcache_threshold", [0, 0.1], NOT_THRESHOLDS, NUMBER),
    ("magcache", MAG, "retention_ratio", [0, 0.2, 1], NOT_THRESHOLDS, NUMBER),
    ("magcache", MAG, "max_skip_steps", [0, 9], [None, -1, 0.5], "an integer of at least 0"),
    ("easycache", {}, "easycache_threshold", [0, 0.1, 2], NOT_THRESHOLDS, NUMBER),
    ("teacache", {}, "teacache_threshold", [0, 0.1, 2], NOT_THRESHOLDS, NUMBER),
    (
        "teacache",
        {},
        "teacache_coefficients",
        [(1.0,), (4.9e2, -2.8e2, 0)],
        [None, (), "10", 1.0, (INF,), ("1",)],
        NUMBERS,
    ),
    ("seacache", {}, "seacache_threshold", [0, 0.1, 2], NOT_THRESHOLDS, NUMBER),
    ("seacache", {}, "seacache_power", [None, 0, 2.5], [NAN, -1, *NOT_NUMBERS], NUMBER),
    (
        "seacache",
        {},
        "seacache_grid",
        [None, (4, 6), (3, 4, 6)],
        [(), (4,), (1, 2, 3, 4), "44", 4, (0, 4), (2.0, 2), (True, 2)],
        GRID,
    ),
]
GOOD = [(r, more, n, v) for r, more, n, taken, _, _ in OPTIONS for v in taken]
BAD = [(r, more, n, v, says) for r, more, n, _, refused, says in OPTIONS for v in refused]


@pytest.mark.parametrize(("rule", "more", "name", "value"), GOOD, ids=repr)
def test_taken_and_selects_its_rule(rule, more, name, value):
    resolved = resolve({**more, name: value}).rule
    assert (resolved.name, getattr(resolved, name)) == (rule, value)


@pytest.mark.parametrize(("rule", "more", "name", "value", "says"), BAD, ids=repr)
def test_refused_with_name_value_and_range(rule, more, name, value, says):
    with pytest.raises(InvalidConfig) as raised:
        resolve({"rule": rule, **more, name: value})
    seen = tuple(value) if isinstance(value, list) and value != [1] else value
    assert str(raised.value) == f"{name} must be {says}, got {seen!r}"


@pytest.mark.parametrize("rule", ["teacache", "seacache", "easycache"])
def test_shared_options_stay_with_the_rule_that_was_chosen(rule):
    resolved = resolve({"rule": rule}, {"max_warmup_steps": 3}, {"batch_rule": "mean"}).rule
    assert (resolved.name, resolved.max_warmup_steps, resolved.batch_rule) == (rule, 3, "mean")


def test_a_fixed_schedule_without_its_mask_says_what_it_needs():
    for options in ({"rule": "fixed"}, {"fixed_region": (0, 2)}):
        with pytest.raises(InvalidConfig, match=r"goes by compute_mask, .*steps_mask"):
            resolve(options)


def test_magcache_without_ratios_says_what_it_needs():
    with pytest.raises(InvalidConfig, match="goes by mag_ratios"):
        resolve({"rule": "magcache"})
    with pytest.raises(InvalidConfig, match="goes by mag_ratios"):
        resolve({"magcache_threshold": 0.1})
