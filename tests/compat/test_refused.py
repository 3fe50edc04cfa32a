"""What the interface refuses, each by its sentence, beside a neighbour that it takes."""

import importlib.util

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import dit_cachegraph as dc
from dit_cachegraph import (
    BlockAdapter,
    DBCacheConfig,
    ForwardPattern,
    ParamsModifier,
    TaylorSeerCalibratorConfig,
)
from migration.stand_ins import OwnTransformer, load_wan22, own_loop, wan_prompt
from support.tiny_models import build_flux


@pytest.mark.e2e
def test_a_model_with_diffusers_own_cache():
    model = build_flux(1, 2)
    model.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(dc.InvalidConfig, match=r"call `transformer.disable_cache\(\)`"):
        dc.enable_cache(model)
    assert "forward" not in model.__dict__
    model.disable_cache()
    dc.enable_cache(model)
    assert "forward" in model.__dict__


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="needs cache-dit")
def test_a_model_with_cache_dits_cache():
    import cache_dit  # noqa: PLC0415

    model = OwnTransformer()
    adapter = cache_dit.BlockAdapter(
        transformer=model,
        blocks=model.blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
    )
    cache_dit.enable_cache(adapter)
    with pytest.raises(dc.InvalidConfig, match=r"call `cache_dit.disable_cache\(pipe\)`"):
        dc.enable_cache(model)
    cache_dit.disable_cache(adapter)
    dc.enable_cache(model)
    assert dc.strify(model) == "DBCache_F8B0_W8I1M0MC0_R0.08"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"parallelism_config": dc.ParallelismConfig(ulysses_size=2)}, "no part of the cache: set"),
        ({"attention_backend": "native"}, r"set_attention_backend\(\.\.\.\)` of diffusers before"),
        ({"quantize_config": dc.QuantizeConfig(quant_type="int8")}, "quantise the transformer"),
        ({"residual_dif_threshold": 0.1}, "did you mean residual_diff_threshold"),
        ({"enable_spearate_cfg": True}, "did you mean enable_separate_cfg"),
        ({"enable_calibrator": True},
         "enable_calibrator is of a calibrator's own configuration: give that as calibrator_confi"),
        ({"preset": "fast"}, r"call configure\(pipe, preset=\.\.\.\) after enable_cache"),
        ({"max_warmup_steps": -1}, "max_warmup_steps must be an integer of at least 0, got -1"),
        ({"enable_dmd": True, "enable_foca": True}, "enable_dmd and enable_foca: only one"),
        ({"enable_taylorseer": "no"}, "enable_taylorseer must be True or False, got 'no'"),
        ({"taylorseer_order": 2}, "taylorseer_order: of a forecast that is off; give enable_tayl"),
        ({"enable_taylorseer": True, "dmd_history": 4}, "dmd_history: of a forecast that is off"),
        ({"cache_type": "DBPrune", "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": [0]},
         "Bn_compute_blocks_ids is an option of DBCache alone"),
        ({"cache_config": DBCacheConfig(Bn_compute_blocks=2, Bn_compute_blocks_ids=[0]),
          "cache_type": "DBPrune"}, "Bn_compute_blocks_ids is an option of DBCache alone"),
        ({"Bn_compute_blocks_ids": [0]}, "say beside it how many there are"),
        ({"enable_dynamic_prune_threshold": True, "non_prune_block_ids": [1]},
         "enable_dynamic_prune_threshold, non_prune_block_ids: .*give cache_type='DBPrune' beside"),
        ({"cache_config": dc.DBPruneConfig(), "non_prune_block_ids": [1]},
         "give cache_type='DBPrune' beside"),
        ({"cache_type": "FBCache"}, "cache_type must be 'DBCache', 'DBPrune' or 'NONE'"),
        ({"params_modifiers": [ParamsModifier(num_inference_steps=9), ParamsModifier()]},
         "num_inference_steps is of a whole transformer"),
        ({"cache_config": {"Fn_compute_blocks": 1}}, "DBPruneConfig, got .*load_configs reads a "),
        ({"cache_config": TaylorSeerCalibratorConfig()}, "cache_config must be of dit_cachegraph"),
        ({"calibrator_config": DBCacheConfig()}, "calibrator_config must be of dit_cachegraph's"),
        ({"params_modifiers": ["fast"]}, "params_modifiers must be a ParamsModifier or a list, go"),
        ({"params_modifiers": [[DBCacheConfig()]]}, "must be made of ParamsModifier, got .DBCache"),
        ({"compile": "no"}, "compile must be True or False, got 'no'"),
    ],
)  # fmt: skip
def test_options(options, sentence):
    model = OwnTransformer()
    with pytest.raises(dc.InvalidConfig, match=sentence):
        dc.enable_cache(model, **options)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("change", [dc.refresh_context, lambda _, **given: ParamsModifier(**given)])
def test_configurations_in_the_place_of_each_other(change):
    model = dc.enable_cache(OwnTransformer(), DBCacheConfig(max_warmup_steps=3))
    with pytest.raises(dc.InvalidConfig, match="calibrator_config must be of dit_cachegraph's"):
        change(model, calibrator_config=DBCacheConfig())
    with pytest.raises(dc.InvalidConfig, match="cache_config must be of dit_cachegraph's"):
        change(model, cache_config="cache.yaml")
    assert dc.strify(model) == "DBCache_F8B0_W3I1M0MC0_R0.08"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("quantize", "quantise the transformer first"),
        ("set_attn_backend", r"set_attention_backend\(\.\.\.\)` of diffusers"),
        ("layerwise_offload", r"enable_group_offload\(\.\.\.\)` of diffusers"),
        ("ProfilerContext", "use torch.profiler"),
        ("supported_matrix", "call supported_pipelines"),
        ("init_logger", "use logging.getLogger"),
        ("disable_print", "redirect_stdout"),
        ("maybe_empty_cache", r"torch.cuda.empty_cache\(\)"),
        ("parse_extra_modules", "parallelism is no part of the cache"),
    ],
)
def test_names_that_can_be_imported_alone(name, sentence):
    with pytest.raises(dc.InvalidConfig, match=f"{name}: .*{sentence}"):
        getattr(dc, name)(OwnTransformer())


def test_adapters_of_ones_own():
    with pytest.raises(dc.InvalidConfig, match="PatchFunctor: .*no model needs an adapter"):

        class OwnFunctor(dc.PatchFunctor):
            pass

    with pytest.raises(dc.InvalidConfig, match="BlockAdapterRegister: .*no model needs an adapte"):
        dc.BlockAdapterRegister.register("OwnPipeline")
    assert not hasattr(dc, "BlockAdapterRegistry")


def test_variables_of_the_environment():
    with pytest.raises(dc.InvalidConfig, match=r"ENV: the variables CACHE_DIT_\* mean nothing"):
        _ = dc.ENV.CACHE_DIT_LOG_LEVEL


def test_options_that_say_nothing():
    model = OwnTransformer()
    dc.enable_cache(model, parallelism_config=None, attention_backend=None, quantize_config=None,
                    params_modifiers=[ParamsModifier(), ParamsModifier()])  # fmt: skip
    assert dc.strify(model) == "DBCache_F8B0_W8I1M0MC0_R0.08"


def test_no_cache_at_all():
    model = OwnTransformer()
    assert dc.enable_cache(model, DBCacheConfig(cache_type=dc.NONE)) is model
    assert "forward" not in model.__dict__


@pytest.mark.parametrize(
    "options",
    [
        {"cache_config": DBCacheConfig(cache_type="NONE")},
        {"cache_type": "NONE"},
        {"cache_config": DBCacheConfig(), "cache_type": "NONE"},
    ],
)
def test_no_cache_turns_off_what_was_on(options):
    """As any second `enable_cache` replaces what the first one said."""
    model = dc.enable_cache(OwnTransformer())
    dc.enable_cache(model, **options)
    assert "forward" not in model.__dict__


def test_no_cache_can_not_be_refreshed():
    model = dc.enable_cache(OwnTransformer(), max_warmup_steps=3)
    with pytest.raises(dc.InvalidConfig, match="call disable_cache to turn it off"):
        dc.refresh_context(model, cache_config=DBCacheConfig(cache_type="NONE"))
    dc.refresh_context(model, cache_config=DBCacheConfig(max_warmup_steps=4))
    assert dc.strify(model) == "DBCache_F8B0_W4I1M0MC0_R0.08"


@pytest.mark.parametrize("target", [None, 1, "pipe"])
def test_targets(target):
    with pytest.raises(dc.UnknownTarget, match="expected a pipeline, a transformer"):
        dc.enable_cache(target)


class TestHints:
    def ran(self, **hints: object) -> OwnTransformer:
        model = OwnTransformer()
        dc.enable_cache(BlockAdapter(transformer=model, **hints), max_warmup_steps=1)
        own_loop(model, 2)
        return model

    @pytest.mark.parametrize(
        "hints",
        [
            {},
            {"auto": True, "forward_pattern": ForwardPattern.Pattern_3},
            {"blocks_name": "blocks", "forward_pattern": [ForwardPattern.Pattern_3]},
            # The block gets the embedded timestep beside its stream: that makes no difference.
            {"blocks_name": "blocks", "forward_pattern": dc.Pattern_2},
        ],
    )
    def test_that_agree(self, hints):
        assert dc.summary(self.ran(**hints)).graphs[0].region == (8, 12)

    def test_a_pattern_that_contradicts(self):
        with pytest.raises(dc.InvalidConfig) as raised:
            self.ran(blocks_name="blocks", forward_pattern=ForwardPattern.Pattern_1)
        assert str(raised.value) == (
            "the hint says blocks: Pattern_1 (h, e -> e, h), and the graph has blocks: Pattern_3 "
            "(h -> h): correct the hint, or leave it out, since blocks are found without"
        )

    def test_a_list_that_is_not_there(self):
        with pytest.raises(dc.InvalidConfig, match="hint says layers, and the graph has blocks: "):
            self.ran(blocks_name="layers")
        with pytest.raises(dc.InvalidConfig, match="OwnTransformer holds no such list of blocks"):
            self.ran(blocks=torch.nn.ModuleList())

    def test_every_call_says_so(self):
        model = OwnTransformer()
        dc.enable_cache(BlockAdapter(transformer=model, blocks_name="layers"))
        for _ in range(2):
            with pytest.raises(dc.InvalidConfig, match="the hint says layers"):
                own_loop(model, 1)
        dc.disable_cache(model)
        own_loop(model, 1)

    def test_numbers_that_do_not_fit(self):
        patterns = [dc.Pattern_0, dc.Pattern_1, dc.Pattern_3]
        with pytest.raises(dc.InvalidConfig, match="3 entries for the 2 block lists"):
            self.ran(blocks_name=["blocks", "more"], forward_pattern=patterns)
        with pytest.raises(dc.InvalidConfig, match="forward_pattern must be a ForwardPattern"):
            self.ran(forward_pattern="Pattern_3")
        with pytest.raises(dc.InvalidConfig, match="patch_functor rewrites a forward"):
            BlockAdapter(transformer=OwnTransformer(), patch_functor=object())


@pytest.fixture(scope="module")
def pipe():
    return load_wan22()


class TestTwoTransformers:
    def names(self, pipe) -> list[str]:
        return [dc.strify(pipe.transformer), dc.strify(pipe.transformer_2)]

    def test_each_by_its_own_modifier(self, pipe):
        forecast = ParamsModifier(enable_taylorseer=True, taylorseer_order=2)
        modifiers = [[ParamsModifier(max_warmup_steps=4)], forecast]
        dc.enable_cache(pipe, Fn_compute_blocks=1, params_modifiers=modifiers)
        assert self.names(pipe) == [
            "DBCache_F1B0_W4I1M0MC0_R0.08",
            "DBCache_F1B0_W8I1M0MC0_R0.08_T1O2",
        ]

    def test_one_for_both(self, pipe):
        modifier = ParamsModifier(DBCacheConfig().reset(residual_diff_threshold=0.3))
        dc.enable_cache(pipe, Fn_compute_blocks=1, params_modifiers=modifier)
        assert self.names(pipe) == ["DBCache_F1B0_W8I1M0MC0_R0.3"] * 2

    def test_a_whole_configuration_brings_its_defaults(self, pipe):
        modifier = ParamsModifier(DBCacheConfig(residual_diff_threshold=0.3))
        dc.enable_cache(pipe, Fn_compute_blocks=1, params_modifiers=modifier)
        assert self.names(pipe) == ["DBCache_F8B0_W8I1M0MC0_R0.3"] * 2

    @pytest.mark.parametrize(
        "uncached",
        [ParamsModifier(DBCacheConfig(cache_type="NONE")), ParamsModifier(cache_type="NONE")],
    )
    def test_one_is_left_uncached(self, pipe, uncached):
        always = ParamsModifier(max_warmup_steps=1, residual_diff_threshold=1.0)
        dc.enable_cache(pipe, params_modifiers=[uncached, always])
        pipe(**wan_prompt())
        first, second = (dc.summary(m).steps for m in (pipe.transformer, pipe.transformer_2))
        assert {step.reason for step in first} == {"disabled"}
        assert any(step.hit for step in second)

    def test_another_number(self, pipe):
        with pytest.raises(dc.InvalidConfig, match="has 3 entries for 2 transformers"):
            dc.enable_cache(pipe, params_modifiers=[ParamsModifier()] * 3)

    def test_all_are_disabled(self, pipe):
        dc.disable_cache(pipe)
        assert "forward" not in pipe.transformer.__dict__ | pipe.transformer_2.__dict__
