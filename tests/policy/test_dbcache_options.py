"""The options of DBCache beyond its threshold: other probes, last blocks that decide for
themselves, a new beginning, warm-up and mask over the noise range."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dit_cachegraph as dc
from dit_cachegraph.policy.rule import Decision, History, Observation
from dit_cachegraph.policy.rules.dbcache import DBCache
from support.running import compile_cached, run_all
from support.tiny_models import FLUX, WAN, trajectory
from support.toy_dits import adding_dit, gated_dit
from support.toy_runs import compile_toy, run, toy_steps

QUARTER = Observation(moved=(1.0,), size=(4.0,))
DEPTH = 4


def reasons(config: DBCache, noises: list[float]) -> list[str | None]:
    """Why each step would compute before anything is looked at."""
    return [config.why_compute(History(step=i), (), noise) for i, noise in enumerate(noises)]


def hidden_after(model, block, steps) -> list[torch.Tensor]:
    """The image's stream after a block, at each step, in eager mode."""
    seen = []
    handle = block.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        for kwargs in steps:
            model(**kwargs)
    handle.remove()
    return [out if isinstance(out, torch.Tensor) else out[1] for out in seen]


def expected_diff(now, before, important: float) -> float:
    moved, size = (now - before).double().abs().sum(-1), before.double().abs().sum(-1)
    ratios = []
    for m, s in zip(moved, size, strict=True):
        counted = m / s > important if important and bool((m / s > important).any()) else m >= 0
        ratios.append(float(m[counted].sum() / s[counted].sum()))
    return max(ratios)


@pytest.mark.parametrize("tiny", [FLUX, WAN], ids=lambda tiny: tiny.name)
def test_probes_are_measured_as_in_eager(tiny):
    """The stream itself, or fewer channels and tokens of it, against that of the last computed
    step. The tiny model's blocks are those of its one list."""
    model = tiny.build(DEPTH)
    inputs = tiny.make_inputs(model, batch=2, size=3, text_tokens=5, seed=0)
    steps = list(trajectory(tiny, inputs, 8))
    block = model.get_submodule(tiny.block_lists[0])[0]
    hidden = hidden_after(model, block, steps)
    compiled = compile_cached(model, Fn_compute_blocks=1, max_warmup_steps=1)
    num_compared = 0
    for every, important, threshold in [(1, 0.0, 0.2), (2, 0.0, 0.1), (1, 0.3, 0.4), (3, 0.1, 0.9)]:
        dc.configure(
            compiled, l1_hidden_states_diff_threshold=threshold, downsample_factor=every,
            important_condition_threshold=important,
        )  # fmt: skip
        dc.reset(compiled)
        ran, last = run_all(compiled, steps), 0
        for i in range(1, len(steps)):
            now, before = hidden[i][..., ::every], hidden[last][..., ::every]
            diff = expected_diff(now, before, important)
            assert ran[i].diff == pytest.approx(diff, rel=1e-4), f"step {i} of {every, important}"
            assert ran[i].hit == (diff < threshold)
            last = last if ran[i].hit else i
            num_compared += 1
    assert num_compared == 28


def test_a_residual_of_fewer_channels_is_compared():
    model = WAN.build(DEPTH)
    inputs = WAN.make_inputs(model, batch=1, size=3, text_tokens=5, seed=0)
    steps = list(trajectory(WAN, inputs, 3))
    entered = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    left = hidden_after(model, model.blocks[0], steps)
    handle.remove()
    residuals = [(b - a)[..., ::4] for a, b in zip(entered, left, strict=True)]
    compiled = compile_cached(
        model, Fn_compute_blocks=1, max_warmup_steps=1, downsample_factor=4,
        residual_diff_threshold=0.0001,
    )  # fmt: skip
    ran = run_all(compiled, steps)
    assert ran[2].diff == pytest.approx(expected_diff(residuals[2], residuals[1], 0.0), rel=1e-4)
    # Of 1 x 18 x 32 channels a quarter, and the whole residual of the region.
    num_elements = residuals[0].numel() + left[0].numel()
    assert dc.summary(compiled).state_nbytes == 4 * num_elements


STATIC = {"steps_computation_mask": (1, 0), "steps_computation_policy": "static"}


@pytest.mark.parametrize("batch_rule", ["max", "mean"])
@pytest.mark.parametrize(
    "by", [{"residual_diff_threshold": 1.0}, {**STATIC, "residual_diff_threshold": 0.0}], ids=str
)
def test_last_blocks_that_are_not_named_decide_for_themselves(by, batch_rule):
    """Blocks that add k * sin t: those that ran did so with the sine of now, the others with that
    of the first step. Block 4 alone is named of the last three; the input of block 3 is far from
    what it was, that of block 5 is near. A mask that says what is reused says nothing of them."""
    steps = toy_steps([90.0, 80.0])
    model = adding_dit(1, 2, 4, 8, 16, 32)
    compiled = compile_toy(
        model, **by, batch_rule=batch_rule, Bn_compute_blocks=3, Bn_compute_blocks_ids=[1],
        non_compute_blocks_diff_threshold=1e-9,
    )  # fmt: skip
    for inputs in steps:
        actual = run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].skipped == ((1, 3),)
    dc.reset(compiled)
    dc.configure(compiled, non_compute_blocks_diff_threshold=10.0)
    for inputs in steps:
        actual = run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].skipped == ((1, 3), (3, 4), (5, 6))
    sine = math.sin(math.radians(80.0))
    ran, reused = 1 + 16, 2 + 4 + 8 + 32
    expected = steps[1]["hidden_states"] + (ran * sine + reused) / 2
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_last_blocks_run_on_a_computed_step():
    compiled = compile_toy(
        adding_dit(1, 2, 4, 8), residual_diff_threshold=0.0, Bn_compute_blocks=1,
        Bn_compute_blocks_ids=[], non_compute_blocks_diff_threshold=10.0,
    )  # fmt: skip
    for inputs in toy_steps([90.0, 80.0]):
        run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].skipped == ()


@pytest.mark.parametrize("by", [{"residual_diff_threshold": 1.0}, STATIC], ids=str)
def test_last_blocks_run_where_no_block_is_between(by):
    compiled = compile_toy(
        adding_dit(1, 2, 4, 8), **by, Fn_compute_blocks=2, Bn_compute_blocks=2,
        Bn_compute_blocks_ids=[0], non_compute_blocks_diff_threshold=1e-9,
    )  # fmt: skip
    for inputs in toy_steps([90.0, 80.0]):
        run(compiled, inputs)
    assert dc.summary(compiled).steps[-1].skipped == ()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("once", ["warmup", "warmup", None, None, "refresh", "warmup", None, None, None, None]),
        ("repeat", ["warmup", "warmup", None, None, "refresh", "warmup", None, None, "refresh",
                    "warmup"]),
    ],
)  # fmt: skip
def test_a_refresh_begins_anew(policy, expected):
    config = DBCache(
        max_warmup_steps=2, force_refresh_step_hint=4, force_refresh_step_policy=policy
    )
    assert reasons(config, [0.5] * 10) == expected


def test_the_mask_begins_anew_as_well():
    config = DBCache(steps_computation_mask=[1, 0, 1, 0], force_refresh_step_hint=4,
                           max_warmup_steps=0)  # fmt: skip
    expected = [
        "mask",
        None,
        "mask",
        None,
        "refresh",
        None,
        "mask",
        None,
        "past the mask's 4 steps",
    ]
    assert reasons(config, [0.5] * 9) == expected


@pytest.mark.parametrize("rule", ["dbcache", "dbprune"])
def test_what_was_kept_before_a_refresh_is_not_used_after_it(rule):
    """Blocks that add k * sin t: a forecast would draw a line from the first step, far from what
    comes after."""
    steps = toy_steps([90.0, 80.0, 70.0, 20.0, 10.0])
    model = adding_dit(1, 2, 4, 8)
    compiled = compile_toy(
        model, rule=rule, predictor="taylorseer", residual_diff_threshold=0.9, max_warmup_steps=1,
        force_refresh_step_hint=3,
    )  # fmt: skip
    for inputs in steps:
        actual = run(compiled, inputs)
    report = dc.summary(compiled)
    assert [step.hit for step in report.steps] == [False, True, True, False, True]
    assert report.steps[3].reason == "refresh"
    now, refreshed = (math.sin(math.radians(degrees)) for degrees in (10, 20))
    expected = steps[4]["hidden_states"] + (1 * now + 14 * refreshed) / 2
    torch.testing.assert_close(actual, expected)


def test_differences_add_up_anew_after_a_refresh():
    compiled = compile_toy(
        gated_dit(), residual_diff_threshold=0.9, max_warmup_steps=1, force_refresh_step_hint=4,
        max_accumulated_residual_diff_threshold=0.001,
    )  # fmt: skip
    for inputs in toy_steps([90.0, 80.0, 70.0, 60.0, 50.0, 40.0, 30.0]):
        run(compiled, inputs)
    hits = [step.hit for step in dc.summary(compiled).steps]
    assert hits == [False, True, False, False, False, True, False]


@given(st.floats(0, 1), st.floats(0, 1))
def test_warm_up_over_the_noise_range(fraction, noise):
    config = DBCache(warmup_noise_fraction=fraction, max_warmup_steps=8)
    expected = "warmup" if noise > 1 - fraction else None
    assert reasons(config, [noise] * 3) == [expected] * 3


def test_image_to_image_and_a_second_expert_warm_up_once():
    """The first tenth of the noise range: the whole schedule computes 3 steps of 28, an image at
    strength 0.4 none of its 11, an expert that takes over at 0.875 none."""
    config = DBCache(warmup_noise_fraction=0.1)
    levels = [1 - i / 28 for i in range(28)]
    assert reasons(config, levels).count("warmup") == 3
    assert reasons(config, [level for level in levels if level <= 0.4]).count("warmup") == 0
    assert reasons(config, [level for level in levels if level <= 0.875]).count("warmup") == 0


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.floats(0, 1))
def test_a_mask_over_the_noise_range(mask, noise):
    config = DBCache(steps_computation_mask=mask, mask_over="noise", max_warmup_steps=0)
    place = min(math.floor((1 - noise) * len(mask)), len(mask) - 1)
    expected = "mask" if mask[place] else None
    # Steps beyond its length don't compute: the last entry holds to the end.
    assert config.why_compute(History(step=99), (), noise) == expected


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_noise_is_read_off_the_timestep(scale):
    """Also within `request(key)`, where a schedule would read nothing."""
    compiled = compile_toy(
        adding_dit(1, 2, 3, 4), steps_computation_mask=[1, 1, 0, 0], mask_over="noise",
        steps_computation_policy="static",
    )  # fmt: skip
    # Of a thousand, the last timestep is 1: hardly any noise, and not all of it.
    levels = [1.0, 0.8, 0.6, 0.4, 0.001]
    with dc.request("A"):
        for inputs in toy_steps([scale * level for level in levels]):
            run(compiled, inputs)
    assert [s.hit for s in dc.summary(compiled).steps] == [False, False, False, True, True]


def test_a_region_after_one_that_computed_computes():
    config = DBCache(Bn_compute_blocks=2, Bn_compute_blocks_ids=(0,))
    computed = (Decision(False, "warmup"),)
    said = config.why_compute(History(step=20), computed, None)
    assert said == "the region before it computed"
    assert config.why_compute(History(step=20), (Decision(True, "hit"),), None) is None


@pytest.mark.parametrize(
    ("num_blocks", "options", "expected"),
    [
        (12, {}, (8, 12)),
        (9, {}, (8, 9)),
        (8, {}, (2, 8)),
        (6, {}, (1, 6)),
        (12, {"Bn_compute_blocks": 4}, (3, 8)),
        (12, {"Bn_compute_blocks": 3}, (8, 9)),
    ],
)
def test_first_blocks_that_shrink_to_fit(num_blocks, options, expected):
    config = DBCache(Fn_compute_blocks=8, shrinks_to_fit=True, **options)
    (span,) = config.spans([num_blocks])
    assert (span.start, span.stop) == expected
    (span,) = DBCache(Fn_compute_blocks=8).spans([8])
    assert (span.start, span.stop) == (8, 8)
