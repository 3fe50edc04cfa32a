"""cache-dit's configuration objects where `configure`, `options` and `request` take a rule or a
predictor: each decides as under `enable_cache`."""

from collections.abc import Mapping

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from dit_cachegraph.config import resolve
from dit_cachegraph.policy.predictors.foca import FoCa
from dit_cachegraph.policy.predictors.replay import Replay
from dit_cachegraph.policy.predictors.taylorseer import TaylorSeer
from dit_cachegraph.policy.rules.dbcache import DBCache
from dit_cachegraph.policy.rules.dbprune import DBPrune
from support.running import compile_cached, run_all
from support.tiny_models import WAN, trajectory

CACHE_DITS = {"Fn_compute_blocks": 8, "shrinks_to_fit": True, "batch_rule": "mean"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rule": DBCacheConfig(max_warmup_steps=3)}, DBCache(max_warmup_steps=3, **CACHE_DITS)),
        ({"rule": DBCacheConfig(Fn_compute_blocks=2)},
         DBCache(Fn_compute_blocks=2, batch_rule="mean")),
        ({"rule": DBPruneConfig(non_prune_block_ids=[1])},
         DBPrune(non_prune_block_ids=(1,), **CACHE_DITS)),
        ({"rule": DBCacheConfig(cache_type="DBPrune")}, DBPrune(**CACHE_DITS)),
        ({"rule": DBCacheConfig().reset(max_cached_steps=2)},
         DBCache(max_cached_steps=2, **CACHE_DITS)),
        ({"predictor": TaylorSeerCalibratorConfig(taylorseer_order=2)},
         TaylorSeer(taylorseer_order=2)),
        ({"predictor": TaylorSeerCalibratorConfig(enable_calibrator=False)}, Replay()),
        ({"predictor": dc.FoCaCalibratorConfig(enable_encoder_calibrator=False)},
         FoCa(enable_encoder_calibrator=False)),
    ],
)  # fmt: skip
def test_stands_for_the_rule_or_predictor_of_its_options(given, expected):
    settings = resolve(given)
    assert expected == (settings.rule if "rule" in given else settings.predictor)


def steps_of(model: torch.nn.Module, num_steps: int) -> list[dict[str, object]]:
    inputs = WAN.make_inputs(model, batch=2, size=3, text_tokens=4, seed=0)
    return list(trajectory(WAN, inputs, num_steps))


def settings_of(model: torch.nn.Module) -> Mapping[str, object]:
    return dc.summary(model).settings[-1]


def test_decides_as_under_enable_cache():
    cache = DBCacheConfig(max_warmup_steps=2, residual_diff_threshold=0.8, num_inference_steps=8)
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1)
    enabled, configured = WAN.build(8), WAN.build(8)
    steps = steps_of(enabled, 8)
    dc.enable_cache(enabled, cache, calibrator)
    expected = run_all(enabled, steps)
    compiled = compile_cached(configured, rule=DBPruneConfig())
    dc.configure(compiled, rule=cache, predictor=calibrator)
    ran = run_all(compiled, steps)
    assert [r.hit for r in ran] == [r.hit for r in expected]
    assert sum(r.hit for r in ran) >= 3
    assert settings_of(configured) == settings_of(enabled)
    # Freed after the last step, as `num_inference_steps` has it.
    assert dc.summary(configured).state_nbytes == dc.summary(enabled).state_nbytes == 0
    for mine, theirs in zip(ran, expected, strict=True):
        torch.testing.assert_close(mine.output, theirs.output)


def test_what_it_leaves_at_its_default_covers_the_layer_below():
    below = {
        "rule": "dbcache",
        "max_accumulated_residual_diff_threshold": 0.5,
        "max_state_bytes": 9,
    }
    settings = resolve(below, {"rule": DBCacheConfig()})
    assert settings.rule == DBCache(**CACHE_DITS)
    assert settings.common.max_state_bytes == 9
    assert settings.common.num_inference_steps is None


def test_a_name_beside_it_wins_as_in_enable_cache():
    rule = resolve({"rule": DBCacheConfig(max_warmup_steps=3), "max_warmup_steps": 5}).rule
    assert rule == DBCache(max_warmup_steps=5, **CACHE_DITS)
    # Also beside a rule of ours, which was silent about it.
    rule = resolve({"rule": DBCache(max_warmup_steps=3), "max_warmup_steps": 5}).rule
    assert rule == DBCache(max_warmup_steps=5)


def test_what_changes_later_changes_nothing():
    config = DBCacheConfig(max_warmup_steps=3)
    model = WAN.build(4)
    compiled = compile_cached(model)
    dc.configure(compiled, rule=config)
    in_request = dc.request("one", rule=config)
    config.update(max_warmup_steps=6)
    with in_request:
        run_all(compiled, steps_of(model, 4))
    assert [step.reason for step in dc.summary(model).steps].count("warmup") == 3
    assert settings_of(model)["max_warmup_steps"] == 3


def test_of_one_block_list():
    model = WAN.build(4)
    part = {"rule": DBCacheConfig(max_warmup_steps=3), "predictor": TaylorSeerCalibratorConfig()}
    compiled = compile_cached(model, block_lists=[part])
    run_all(compiled, steps_of(model, 1))
    (kept,) = settings_of(model)["block_lists"]
    assert (kept["rule"], kept["max_warmup_steps"]) == ("dbcache", 3)
    assert (kept["predictor"], kept["taylorseer_order"]) == ("taylorseer", 1)
    with pytest.raises(dc.InvalidConfig, match="num_inference_steps can't be said of one block"):
        dc.configure(compiled, block_lists=[{"rule": DBCacheConfig(num_inference_steps=4)}])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rule": DBCacheConfig(cache_type="NONE")}, "'NONE' is no rule: enabled=False runs every"),
        ({"rule": TaylorSeerCalibratorConfig()},
         r"TaylorSeerCalibratorConfig\(\) is no rule: give it as predictor="),
        ({"predictor": DBCacheConfig()}, r"DBCacheConfig\(\) is no predictor: give it as rule="),
        ({"rule": DBCacheConfig(), "every": 3}, "every is no option of the rule 'dbcache'"),
        # What isn't a configuration is refused as ever.
        ({"rule": DBCacheConfig}, "rule must be one of .*, or a rule: <class"),
        ({"rule": 3}, "rule must be one of .*, or a rule: 3"),
        ({"predictor": dc.ParamsModifier()}, "predictor must be one of .*, or a predictor: <"),
    ],
)  # fmt: skip
def test_refused(given, sentence):
    model = WAN.build(4)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.configure(model, **given)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.request("one", **given)
    with pytest.raises(dc.InvalidConfig, match=sentence):
        resolve(given)
