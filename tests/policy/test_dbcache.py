"""The decision of DBCache in closed form: each reason, which one wins, the diff of a batch."""

import math
from dataclasses import FrozenInstanceError
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_cachegraph.policy.diffs import batch_diff
from dit_cachegraph.policy.rule import Decision, History, Need, Observation
from dit_cachegraph.policy.rules.dbcache import DBCache

NAN, INF = math.nan, math.inf
QUARTER = Observation(moved=(1.0,), size=(4.0,))


def decide(
    step: int = 20,
    seen: Observation = QUARTER,
    *,
    history: History | None = None,
    **options: object,
) -> tuple[bool, str]:
    """What a step says, without warm-up and with a threshold of 0.5 unless `options` say else."""
    config = DBCache(**{"max_warmup_steps": 0, "residual_diff_threshold": 0.5, **options})
    decision = decision_of(config, history or History(step=step), seen)
    return decision.hit, decision.reason


def decision_of(
    config: DBCache, history: History, seen: Observation, noise: float | None = None
) -> Decision:
    """What the driver makes of the rule's answers."""
    reason = config.why_compute(history, seen.earlier, noise)
    return config.decide(history, seen) if reason is None else Decision(False, reason)


def hits_of(num_steps: int, **options: object) -> list[bool]:
    """The decisions of a whole image in which every diff is a quarter."""
    config = DBCache(**{"max_warmup_steps": 0, "residual_diff_threshold": 0.5, **options})
    history, hits = History(), []
    for step in range(num_steps):
        decision = decision_of(config, history, QUARTER) if step else Decision(False, "new image")
        history = history.after([decision])
        hits.append(decision.hit)
    return hits


# From first to last: each row is what computes or reuses a step when no row above it does.
IN_ORDER = [
    ({"max_warmup_steps": 21, "steps_computation_mask": (1,) * 21}, {}, (False, "warmup")),
    ({"steps_computation_mask": (1, 0)}, {}, (False, "past the mask's 2 steps")),
    ({"max_cached_steps": 3}, {"num_hits": 3}, (False, "max_cached 3")),
    ({"max_continuous_cached_steps": 2}, {"num_hits_in_a_row": 2}, (False, "max_continuous 2")),
    (
        {"max_accumulated_residual_diff_threshold": 1.5},
        {"accumulated_diff": 1.5},
        (False, "accumulated diff 1.5 >= 1.5"),
    ),
    ({"residual_diff_threshold": 0.0}, {}, (False, "threshold 0")),
]


@pytest.mark.parametrize("first", range(len(IN_ORDER)), ids=lambda i: IN_ORDER[i][2][1])
def test_the_first_of_all_reasons_wins(first):
    """With every later reason true as well."""
    options, facts = {}, {"step": 20}
    for more_options, more_facts, _ in reversed(IN_ORDER[first:]):
        options |= more_options
        facts |= more_facts
    assert decide(history=History(**facts), **options) == IN_ORDER[first][2]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"max_warmup_steps": 20}, {}),
        ({"max_cached_steps": 4}, {"num_hits": 3}),
        ({"max_cached_steps": -1}, {"num_hits": 999}),
        ({"max_continuous_cached_steps": 3}, {"num_hits": 9, "num_hits_in_a_row": 2}),
        ({"max_continuous_cached_steps": -1}, {"num_hits_in_a_row": 999}),
        ({"max_accumulated_residual_diff_threshold": 1.5}, {"accumulated_diff": 1.49}),
        ({"max_accumulated_residual_diff_threshold": None}, {"accumulated_diff": 99.0}),
        ({"steps_computation_mask": (1,) * 20 + (0,)}, {}),
    ],
)
def test_just_below_each_limit_the_diff_decides(options, facts):
    assert decide(history=History(**{"step": 20, **facts}), **options) == (True, "hit 0.25")


@pytest.mark.parametrize(
    ("moved", "threshold", "expected"),
    [
        (1.0, 0.26, Decision(True, "hit 0.25", 0.25, is_recorded=True)),
        (1.0, 0.25, Decision(False, "diff 0.25 >= 0.25", 0.25, is_recorded=True)),
        (0.0, 0.1, Decision(True, "hit 0", 0.0, is_recorded=True)),
        (1.0, 1.0, Decision(True, "hit, threshold >= 1", 0.25)),
        (99.0, 1.0, Decision(True, "hit, threshold >= 1", 24.75)),
        (99.0, 7, Decision(True, "hit, threshold >= 1", 24.75)),
        (INF, 0.5, Decision(False, "diff is inf", INF)),
        (INF, 1.0, Decision(False, "diff is inf", INF)),
    ],
)
def test_diff_against_threshold(moved, threshold, expected):
    config = DBCache(max_warmup_steps=0, residual_diff_threshold=threshold)
    assert decision_of(config, History(step=1), Observation((moved,), (4.0,))) == expected


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_a_nan_computes_and_is_not_recorded(threshold):
    config = DBCache(max_warmup_steps=0, residual_diff_threshold=threshold)
    decision = decision_of(config, History(step=1), Observation((NAN,), (4.0,)))
    assert (decision.hit, decision.reason, decision.is_recorded) == (False, "diff is nan", False)


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        ({"max_warmup_steps": 4}, {0, 1, 2, 3}),
        ({"max_warmup_steps": 5, "warmup_interval": 2}, {0, 2, 4}),
        ({"max_warmup_steps": 5, "warmup_interval": 9}, {0}),
        ({"max_cached_steps": 3}, {0, 4, 5, 6, 7}),
        ({"max_cached_steps": 0}, set(range(8))),
        ({"max_continuous_cached_steps": 2}, {0, 3, 6}),
        ({"max_continuous_cached_steps": 0}, set(range(8))),
        ({"max_accumulated_residual_diff_threshold": 0.5}, {0, 3, 4, 5, 6, 7}),
        ({"max_accumulated_residual_diff_threshold": 0}, set(range(8))),
        ({"steps_computation_mask": (1, 0, 1, 0, 0)}, {0, 2, 5, 6, 7}),
        ({"steps_computation_mask": (1, 0, 1, 0, 0), "max_warmup_steps": 8}, {0, 2, 5, 6, 7}),
        ({"steps_computation_mask": (1, 1, 1, 0, 0, 0, 0, 0), "max_warmup_steps": 8}, {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("policy", ["dynamic", "static"])
def test_computed_steps_of_an_image(options, computed, policy):
    """All diffs are below the threshold, so that both policies reuse at a 0 of the mask."""
    hits = hits_of(8, steps_computation_policy=policy, **options)
    assert {i for i, hit in enumerate(hits) if not hit} == computed


class TestMask:
    MASK = (1, 0)
    STATIC: ClassVar = {"steps_computation_mask": MASK, "steps_computation_policy": "static"}

    def static(self, step: int, seen: Observation = QUARTER, **options: object) -> tuple[bool, str]:
        options = {"steps_computation_policy": "static", **options}
        return decide(step, seen, steps_computation_mask=self.MASK, **options)

    def test_a_one_computes(self):
        assert decide(0, steps_computation_mask=self.MASK) == (False, "mask")
        assert self.static(0) == (False, "mask")

    def test_a_zero_asks_the_threshold_or_reuses(self):
        far = {"residual_diff_threshold": 0.1}
        assert decide(1, steps_computation_mask=self.MASK, **far) == (False, "diff 0.25 >= 0.1")
        assert self.static(1, **far) == (True, "hit mask")

    def test_a_static_zero_reuses_whatever_the_limits_say(self):
        limits = {"max_cached_steps": 0, "max_continuous_cached_steps": 0}
        assert self.static(1, residual_diff_threshold=0, **limits) == (True, "hit mask")

    def test_warmup_ends_with_the_leading_ones(self):
        mask = (1, 1, 0, 0)
        said = [
            decide(step, max_warmup_steps=8, steps_computation_mask=mask)[1] for step in range(4)
        ]
        assert said == ["warmup", "warmup", "hit 0.25", "hit 0.25"]

    def test_steps_past_the_end_compute(self):
        assert self.static(2) == (False, "past the mask's 2 steps")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, True),
            ({"steps_computation_policy": "static"}, True),
            ({"steps_computation_mask": MASK}, True),
            (STATIC, False),
            ({**STATIC, "Bn_compute_blocks": 2}, False),
            ({**STATIC, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (0, 1)}, False),
            ({**STATIC, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1, 1)}, True),
        ],
    )
    def test_only_a_static_mask_needs_no_diff_unless_blocks_decide_alone(self, options, expected):
        assert DBCache(**options).needs == (frozenset({Need.DIFF}) if expected else frozenset())

    @pytest.mark.parametrize(
        "options", [{"warmup_noise_fraction": 0.1}, {**STATIC, "mask_over": "noise"}]
    )
    def test_what_lies_over_the_noise_needs_it(self, options):
        assert Need.NOISE in DBCache(**options).needs
        assert Need.NOISE not in DBCache(mask_over="noise").needs


@pytest.mark.parametrize(
    ("moved", "size", "by_max", "by_mean"),
    [
        ([1.0], [4.0], 0.25, 0.25),
        ([1.0, 3.0], [4.0, 4.0], 0.75, 0.5),
        ([1.0, 3.0], [1.0, 9.0], 1.0, 0.4),
        ([0.0, 0.0], [4.0, 4.0], 0.0, 0.0),
        ([1.0], [0.0], INF, INF),
        ([1.0, 1.0], [0.0, 4.0], INF, 0.5),
        ([0.0], [0.0], NAN, NAN),
        ([0.0, 1.0], [0.0, 4.0], NAN, 0.25),
        ([INF, 1.0], [4.0, 4.0], INF, INF),
        ([NAN], [0.0], NAN, NAN),
    ],
)
def test_batch_diff(moved, size, by_max, by_mean):
    assert batch_diff(moved, size, "max") == pytest.approx(by_max, nan_ok=True)
    assert batch_diff(moved, size, "mean") == pytest.approx(by_mean, nan_ok=True)


@pytest.mark.parametrize("rule", ["max", "mean"])
@pytest.mark.parametrize("place", range(3))
def test_a_nan_anywhere_is_the_diff(rule, place):
    numbers = [1.0, 2.0, 3.0]
    spoiled = [NAN if i == place else n for i, n in enumerate(numbers)]
    assert math.isnan(batch_diff(spoiled, numbers, rule))
    assert math.isnan(batch_diff(numbers, spoiled, rule))


@pytest.mark.parametrize("rule", ["max", "mean"])
def test_an_infinite_residual_of_the_last_computed_step_is_no_diff_of_zero(rule):
    assert not math.isfinite(batch_diff([1.0, 1.0], [INF, 4.0], rule))
    assert not math.isfinite(batch_diff([1.0], [INF], rule))


numbers_of_samples = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0.01, 100)), min_size=1, max_size=5
)


@given(numbers_of_samples)
def test_the_mean_lies_between_the_samples_and_no_sample_above_the_max(samples):
    moved, size = zip(*samples, strict=True)
    ratios = [m / s for m, s in samples]
    assert batch_diff(moved, size, "max") == max(ratios)
    mean = batch_diff(moved, size, "mean")
    assert min(ratios) * (1 - 1e-9) <= mean <= max(ratios) * (1 + 1e-9)


def test_history_counts_hits_and_their_run():
    hit, computed = Decision(True, "hit"), Decision(False, "compute")
    history = History()
    for decision in (computed, hit, hit):
        history = history.after([decision])
    assert history == History(step=3, num_hits=2, num_hits_in_a_row=2)
    assert history.after([computed]) == History(step=4, num_hits=2, num_hits_in_a_row=0)


@pytest.mark.parametrize("hit", [True, False])
@pytest.mark.parametrize(
    ("diff", "is_recorded", "expected"),
    [(0.25, True, 1.25), (0.25, False, 1.0), (None, True, 1.0), (-0.5, True, 1.0)],
)
def test_history_adds_up_recorded_diffs_of_computed_steps_too(hit, diff, is_recorded, expected):
    after = History(accumulated_diff=1.0).after([Decision(hit, "", diff, is_recorded)])
    assert after.accumulated_diff == expected


def test_history_and_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        History().step = 1
    with pytest.raises(FrozenInstanceError):
        DBCache().batch_rule = "mean"
