"""Options: what each takes and refuses with which sentence, and which layer wins."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields
from types import MappingProxyType

import numpy as np
import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph.config import CommonSettings, CompileOptions, resolve, split_options
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.catalog import RULES
from dit_cachegraph.policy.predictors.chebyshev import Chebyshev
from dit_cachegraph.policy.rules.dbcache import DBCache

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS = ["1", [1], (), True, False]
NOT_INTS = [*NOT_NUMBERS, 1.0, 0.5, NAN, INF]
NOT_CHOICES = ["", "Max", "dynamic ", None, 0, True, ["max"]]
NOT_MASKS = [[], (), "10", 1, True, [2], [-1], [0.5], [None], ["1"], [[1]], {0, 1}, {0: 1}]
# Name: (taken, refused, what the sentence says is allowed).
OPTIONS: Mapping[str, tuple[list[object], list[object], str]] = MappingProxyType(
    {
        "enabled": ([True, False], [None, 0, 1, "yes", []], "True or False"),
        "num_inference_steps": ([None, 1, 50], [0, -1, *NOT_INTS], "an integer of at least 1"),
        "max_state_bytes": ([None, 0, 2**40], [-1, *NOT_INTS], "an integer of at least 0"),
        "max_idle_seconds": (
            [None, 0, 0.5, 3600],
            [NAN, INF, -1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "Fn_compute_blocks": ([None, 1, 57], [0, -1, *NOT_INTS], "an integer of at least 1"),
        "Bn_compute_blocks": ([0, 57], [None, -1, *NOT_INTS], "an integer of at least 0"),
        "residual_diff_threshold": (
            [0, 0.0, 0.08, 1, 7.5],
            [None, NAN, INF, -INF, -0.01, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "max_accumulated_residual_diff_threshold": (
            [None, 0, 0.5, 12],
            [NAN, INF, -1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "max_warmup_steps": ([0, 8], [None, -1, *NOT_INTS], "an integer of at least 0"),
        "warmup_interval": ([1, 3], [None, 0, -1, *NOT_INTS], "an integer of at least 1"),
        "max_cached_steps": ([-1, 0, 9], [None, -2, *NOT_INTS], "an integer of at least -1"),
        "max_continuous_cached_steps": (
            [-1, 0, 9],
            [None, -2, *NOT_INTS],
            "an integer of at least -1",
        ),
        "steps_computation_mask": (
            [None, (1,), (0, 1)],
            NOT_MASKS,
            "a sequence of 0 and 1, one a step",
        ),
        "steps_computation_policy": (
            ["dynamic", "static"],
            NOT_CHOICES,
            "one of 'dynamic', 'static'",
        ),
        "shrinks_to_fit": ([True, False], [None, 0, 1, "yes"], "True or False"),
        "batch_rule": (
            ["max", "mean", "per_sample"],
            NOT_CHOICES,
            "one of 'max', 'mean', 'per_sample'",
        ),
        "mask_over": (["steps", "noise"], NOT_CHOICES, "one of 'steps', 'noise'"),
        "warmup_noise_fraction": (
            [None, 0, 0.3, 1],
            [NAN, INF, -0.1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "force_refresh_step_hint": ([None, 1, 20], [0, -1, *NOT_INTS], "an integer of at least 1"),
        "force_refresh_step_policy": (["once", "repeat"], NOT_CHOICES, "one of 'once', 'repeat'"),
        "l1_hidden_states_diff_threshold": (
            [None, 0, 0.3],
            [NAN, INF, -0.1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "important_condition_threshold": (
            [0, 0.3],
            [None, NAN, INF, -0.1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "downsample_factor": ([1, 4], [None, 0, *NOT_INTS], "an integer of at least 1"),
        "Bn_compute_blocks_ids": (
            [None, ()],
            [[0], (-1,), "0", 1, [True]],
            "among the last Bn_compute_blocks, which are none (say beside it how many there are)",
        ),
        "non_compute_blocks_diff_threshold": (
            [0, 0.08],
            [None, NAN, INF, -0.1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
        "enable_separate_cfg": ([None, True, False], [0, 1, "yes"], "True or False"),
        "cfg_compute_first": ([True, False], [None, 0, 1, "yes"], "True or False"),
        "cfg_diff_compute_separate": ([True, False], [None, 0, 1, "yes"], "True or False"),
        "dry_run": (
            [None, (), (0.1, 1)],
            [1, "0.1"],
            "a sequence",
        ),
        "observe_error": ([True, False], [None, 0, 1, "yes"], "True or False"),
        "max_observed_error": (
            [None, 0, 0.3],
            [NAN, INF, -0.1, *NOT_NUMBERS],
            "a finite number of at least 0",
        ),
    }
)
GOOD = [(name, value) for name, (taken, _, _) in OPTIONS.items() for value in taken]
BAD = [(name, value) for name, (_, refused, _) in OPTIONS.items() for value in refused]


def value_in(layers: tuple[Mapping[str, object], ...], name: str) -> object:
    settings = resolve(*layers)
    part = settings.common if name in {f.name for f in fields(CommonSettings)} else settings.rule
    return getattr(part, name)


def test_every_option_is_tried_here():
    known = [*fields(CommonSettings), *fields(DBCache)]
    assert {f.name for f in known} == set(OPTIONS)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("dbcache", {"steps_computation_mask": [1, 0]}),
        ("dbcache", {"Bn_compute_blocks": 2, "Bn_compute_blocks_ids": [0]}),
        ("dbprune", {"non_prune_block_ids": [1, 2]}),
        ("fixed", {"compute_mask": [1, 0], "fixed_region": [0, 2]}),
        ("magcache", {"mag_ratios": [1.0, 0.9]}),
        ("seacache", {"seacache_grid": [4, 6]}),
        ("teacache", {"teacache_coefficients": [1.0, 0.0]}),
    ],
)
def test_lists_are_as_good_in_an_object_as_by_name(rule, options):
    """A plan is looked up by the settings as they were given."""
    given = RULES[rule](**options)
    assert resolve({"rule": given}) == resolve({"rule": rule, **options})
    assert hash(given) == hash(RULES[rule](**options))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "warmup_noise_fraction"),
        ({"mag_ratios": [1.0]}, "retention_ratio"),
        ({}, "damped_line_least"),
        ({}, "compute_share"),
    ],
)
def test_a_share_is_no_percentage(options, name):
    with pytest.raises(InvalidConfig, match=rf"^{name} must be .*at most 1, got 20$"):
        resolve({**options, name: 20})


@pytest.mark.parametrize(("name", "value"), GOOD, ids=lambda x: repr(x))
def test_taken(name, value):
    assert value_in(({name: value},), name) == value


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda x: repr(x))
def test_refused_with_name_value_and_range(name, value):
    with pytest.raises(InvalidConfig) as raised:
        resolve({name: value})
    assert str(raised.value) == f"{name} must be {OPTIONS[name][2]}, got {value!r}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_rule", np.array([1, 0])),
        ("Bn_compute_blocks_ids", torch.tensor([1, 0])),
        ("residual_diff_threshold", 10**400),
    ],
    ids=["an array of numbers", "a tensor", "what no float holds"],
)
def test_what_compares_to_no_number_is_refused_like_all_else(name, value):
    with pytest.raises(InvalidConfig, match=f"^{name} must be "):
        resolve({name: value})


def test_large_integers_stand_for_their_floats():
    (span,) = DBCache(important_condition_threshold=10**30).spans([8])
    assert span.probe is not None and type(span.probe.important_condition_threshold) is float
    weights = Chebyshev(chebyshev_ridge=10**30).weights((0, 1, 2), 3)
    assert weights == Chebyshev(chebyshev_ridge=1e30).weights((0, 1, 2), 3)


def test_refusals_are_the_packages_and_value_errors():
    assert issubclass(dc.InvalidConfig, ValueError) and issubclass(
        dc.InvalidConfig, dc.CacheGraphError
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Fn_compute_block", "Fn_compute_blocks"),
        ("fn_compute_blocks", "Fn_compute_blocks"),
        ("residual_threshold", "residual_diff_threshold"),
        ("max_warmup_step", "max_warmup_steps"),
        ("max_continuous_steps", "max_continuous_cached_steps"),
        ("enable", "enabled"),
    ],
)
def test_unknown_name_with_the_nearest(name, nearest):
    with pytest.raises(InvalidConfig) as raised:
        resolve({name: 1})
    assert str(raised.value) == f"unknown option {name}: did you mean {nearest}?"


def test_unknown_name_with_nothing_near_lists_all():
    with pytest.raises(InvalidConfig) as raised:
        resolve({"zzz": 1})
    known = set(str(raised.value).removeprefix("unknown option zzz: known: ").split(", "))
    assert {"rule", "predictor", "preset", "taylorseer_order", *OPTIONS} <= known


def test_options_also_know_those_of_the_compilation():
    with pytest.raises(InvalidConfig, match="unknown option inner_backed: did you mean inner_b"):
        split_options({"inner_backed": "eager"})
    with pytest.raises(InvalidConfig, match="unknown option zzz: known: .*inductor, inner_backend"):
        split_options({"zzz": 1})


def test_a_later_layer_wins_name_by_name():
    layers = (
        {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "batch_rule": "mean"},
        {"Fn_compute_blocks": 2, "max_warmup_steps": 2},
        {"Fn_compute_blocks": 3},
    )
    settings = resolve(*layers)
    assert settings.rule == DBCache(Fn_compute_blocks=3, max_warmup_steps=2, batch_rule="mean")
    assert settings.common == CommonSettings()


def test_a_later_layer_may_give_the_default_back():
    layers = ({"Fn_compute_blocks": 3, "enabled": False}, {"Fn_compute_blocks": None})
    assert value_in(layers, "Fn_compute_blocks") is None
    assert value_in(layers, "enabled") is False


def test_no_layer_is_changed():
    layers = ({"Fn_compute_blocks": 1}, {"Fn_compute_blocks": 2})
    resolve(*layers)
    assert layers == ({"Fn_compute_blocks": 1}, {"Fn_compute_blocks": 2})
    assert resolve().rule == resolve({}).rule


def test_options_are_split():
    inductor = {"max_autotune": True}
    compile_options, settings = split_options(
        {"inner_backend": "eager", "mode": "default", "inductor": inductor, "enabled": False}
    )
    assert compile_options == CompileOptions(
        inner_backend="eager", mode="default", inductor=inductor
    )
    assert settings == {"enabled": False}
    assert split_options({}) == (CompileOptions(), {})


def test_bad_setting_among_options_is_refused():
    with pytest.raises(InvalidConfig, match="Fn_compute_blocks must be an integer of at least 1"):
        split_options({"inner_backend": "eager", "Fn_compute_blocks": 0})


@pytest.mark.parametrize("value", [None, "max_autotune", ["max_autotune"], 1])
def test_inductors_options_must_be_a_mapping(value):
    with pytest.raises(InvalidConfig, match="inductor must be"):
        split_options({"inductor": value})


@pytest.mark.parametrize("name", ["max_autotune", "max-autotune", "triton.cudagraphs"])
def test_inductors_options_among_ours_are_sent_to_their_place(name):
    with pytest.raises(InvalidConfig, match=rf"Inductor: give it as inductor=\{{'{name}'"):
        split_options({name: True})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cache_type", "rule='dbcache'"),
        ("cache_config", "given as rule="),
        ("calibrator_config", "given as predictor="),
        ("params_modifiers", "block_lists="),
        ("enable_taylorseer", "predictor='taylorseer'"),
    ],
)
def test_names_of_cache_dits_calls_are_told_what_says_it_here(name, sentence):
    """The nearest name of ours has nothing to do with them."""
    for give in (resolve, split_options):
        with pytest.raises(InvalidConfig, match=f"{name} is of cache-dit's calls: .*{sentence}"):
            give({name: 1})


@pytest.mark.parametrize("name", ["inner_backend", "mode", "inductor"])
def test_what_the_compilation_decided_is_refused_later(name):
    sentence = (
        f"{name} is decided when the model is compiled: give it to torch.compile, in `options`"
    )
    module = torch.nn.Linear(1, 1)
    for give in (lambda: dc.configure(module, **{name: None}), lambda: dc.request(1, **{name: 1})):
        with pytest.raises(InvalidConfig) as raised:
            give()
        assert str(raised.value) == sentence


@pytest.mark.parametrize("mask", [[1, 0], (1, 0), [True, False], [1.0, 0.0], b"\x01\x00"])
def test_a_mask_is_any_sequence_and_kept_as_a_tuple_of_ints(mask):
    kept = DBCache(steps_computation_mask=mask).steps_computation_mask
    assert (kept, [type(v) for v in kept or ()]) == ((1, 0), [int, int])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"every": np.int64(2)}, {"every": 2}),
        ({"residual_diff_threshold": np.float32(0.5)}, {"residual_diff_threshold": 0.5}),
        ({"observe_error": np.bool_(True)}, {"observe_error": True}),
        ({"mag_ratios": np.array([1.0, 0.5])}, {"mag_ratios": (1.0, 0.5)}),
        ({"compute_mask": np.array([1, 0])}, {"compute_mask": (1, 0)}),
        ({"dry_run": np.array([0.25, 0.5])}, {"dry_run": (0.25, 0.5)}),
    ],
    ids=lambda given: next(iter(given)),
)
def test_numbers_and_arrays_of_numpy_are_those_of_python(given, kept):
    """MagCache's ratios are published so, and a sweep of `np.arange` gives such integers."""
    module = torch.nn.Linear(1, 1)
    dc.configure(module, **given)
    assert resolve(*map(dict, REGISTRY.of_module(module).overrides)) == resolve(kept)
    dc.request("of numpy", **given)
    with pytest.raises(InvalidConfig, match="mag_ratios must be a sequence of finite numbers"):
        resolve({"mag_ratios": np.array([[1.0]])})


def test_a_configuration_keeps_pythons_numbers():
    mask = np.array([1, 0])
    config = dc.DBCacheConfig(max_warmup_steps=np.int64(3), steps_computation_mask=mask)
    mask[:] = 1
    assert config == dc.DBCacheConfig(max_warmup_steps=3, steps_computation_mask=[1, 0])


def test_a_mask_that_is_changed_later_changes_nothing():
    mask = [1, 0]
    config = DBCache(steps_computation_mask=mask)
    mask[1] = 1
    assert config.steps_computation_mask == (1, 0)


def test_a_mask_of_options_that_is_changed_later_changes_nothing():
    mask = [1, 0]
    _, settings = split_options({"steps_computation_mask": mask})
    mask[1] = 1
    assert value_in((settings,), "steps_computation_mask") == (1, 0)


@pytest.mark.parametrize("name", [f.name for f in fields(DBCache)])
def test_config_is_frozen_and_takes_names_only(name):
    config = DBCache()
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, OPTIONS[name][0][-1])
    assert hash(config) == hash(DBCache())
    with pytest.raises(TypeError):
        DBCache(8)


@pytest.mark.parametrize(
    ("first", "last", "num_blocks", "expected"),
    [
        (None, 0, 1, (1, 1)),
        (None, 0, 3, (1, 3)),
        (None, 0, 4, (1, 4)),
        (None, 2, 12, (3, 10)),
        (None, 0, 31, (7, 31)),
        (None, 0, 57, (8, 57)),
        (8, 0, 8, (8, 8)),
        (1, 0, 57, (1, 57)),
        (8, 8, 57, (8, 49)),
        (40, 17, 57, (40, 40)),
    ],
)
def test_spans(first, last, num_blocks, expected):
    config = DBCache(Fn_compute_blocks=first, Bn_compute_blocks=last)
    (span,) = config.spans([num_blocks])
    assert (span.start, span.stop) == expected
    assert config.spans([num_blocks - num_blocks // 3, num_blocks // 3]) == (span,)


@pytest.mark.parametrize(
    ("first", "last", "num_blocks", "said_first"), [(8, 0, 7, 8), (3, 2, 4, 3), (None, 4, 4, 1)]
)
def test_more_first_and_last_blocks_than_there_are(first, last, num_blocks, said_first):
    config = DBCache(Fn_compute_blocks=first, Bn_compute_blocks=last)
    with pytest.raises(InvalidConfig) as raised:
        config.spans([num_blocks])
    assert str(raised.value) == (
        f"Fn_compute_blocks={said_first} + Bn_compute_blocks={last} is more than the {num_blocks} "
        "blocks of this model: lower one of them"
    )


def test_a_request_needs_a_key():
    with pytest.raises(TypeError, match="the key names the request, in a dict; got None"):
        dc.request(None)
