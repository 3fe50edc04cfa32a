"""cache-dit's configuration objects, its files, and its small helpers."""

import copy
from pathlib import Path

import pytest
import torch

import dit_cachegraph as dc
from dit_cachegraph import DBCacheConfig, DBPruneConfig, TaylorSeerCalibratorConfig
from migration.stand_ins import OwnTransformer, own_loop
from zoo.table import SUPPORTED, TABLE, as_json, supported_in


class TestConfigs:
    def test_defaults_are_cache_dits(self):
        config = DBCacheConfig()
        assert (config.Fn_compute_blocks, config.Bn_compute_blocks) == (8, 0)
        assert (config.residual_diff_threshold, config.max_warmup_steps) == (0.08, 8)
        assert (config.batch_rule, config.cache_type) == ("mean", dc.DBCache)
        assert DBPruneConfig().dynamic_prune_threshold_relax_ratio == 1.25

    @pytest.mark.peers
    @pytest.mark.parametrize("name", ["DBCacheConfig", "DBPruneConfig"])
    def test_all_options_of_cache_dit_are_there(self, name):
        cache_dit = pytest.importorskip("cache_dit")
        theirs, ours = getattr(cache_dit, name)().as_dict(), getattr(dc, name)().as_dict()
        assert set(theirs) <= set(ours)
        # Written otherwise: an empty list is a tuple, and an enumeration has a class of its own.
        same = {n: list(v) if isinstance(v, tuple) else v for n, v in ours.items() if n in theirs}
        same["cache_type"] = str(same["cache_type"])
        assert same == {**theirs, "cache_type": str(theirs["cache_type"])}

    @pytest.mark.peers
    def test_all_that_cache_dit_exports_for_caching(self):
        cache_dit = pytest.importorskip("cache_dit")
        public = {n for n, v in vars(cache_dit).items() if callable(v) and not n.startswith("_")}
        assert public - set(dc.__all__) == NOT_HERE
        assert all(hasattr(dc, name) for name in NOT_HERE), "each says what to do instead"

    def test_update_changes_and_returns_it(self):
        config = DBCacheConfig(max_warmup_steps=3)
        assert config.update(max_cached_steps=4, residual_diff_threshold=None) is config
        config.Fn_compute_blocks = 1
        assert config == DBCacheConfig(max_warmup_steps=3, max_cached_steps=4, Fn_compute_blocks=1)
        assert config.strify() == "DBCache_F1B0_W3I1M4MC0_R0.08"

    def test_reset_leaves_the_rest_open(self):
        config = DBCacheConfig(Fn_compute_blocks=2).reset(max_warmup_steps=3)
        assert config.settings() == {"max_warmup_steps": 3}
        assert config.residual_diff_threshold is None
        assert copy.deepcopy(config) == config != DBCacheConfig(max_warmup_steps=3)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda c: c.update(max_warmup_step=1), "did you mean max_warmup_steps"),
            (lambda c: setattr(c, "batch_rule", "sum"), "batch_rule must be one of"),
            (lambda c: c.reset(residual_diff_threshold=-1), "must be a finite number"),
            (lambda c: c.update(cache_type=1), "cache_type must be 'DBCache', 'DBPrune' or 'NONE'"),
        ],
    )
    def test_what_is_refused_changes_nothing(self, change, sentence):
        config = DBCacheConfig(max_cached_steps=4)
        with pytest.raises(dc.InvalidConfig, match=sentence):
            change(config)

    def test_the_users_object_stays_as_it_is(self):
        config = DBCacheConfig(max_warmup_steps=3)
        before = config.as_dict()
        dc.enable_cache(OwnTransformer(), cache_config=config, max_cached_steps=4)
        assert config.as_dict() == before

    def test_calibrators(self):
        assert TaylorSeerCalibratorConfig(taylorseer_order=2).settings() == {
            "predictor": "taylorseer",
            "taylorseer_order": 2,
            "calibrator_cache_type": "residual",
            "enable_encoder_calibrator": True,
        }
        assert TaylorSeerCalibratorConfig(enable_calibrator=False).settings() == {
            "predictor": "replay"
        }
        assert dc.DMDCalibratorConfig(dmd_history=5).strify() == "DMDH5"
        assert dc.FoCaCalibratorConfig().settings()["predictor"] == "foca"
        with pytest.raises(dc.InvalidConfig, match="give these options by their own names"):
            TaylorSeerCalibratorConfig(calibrator_kwargs={"n_derivatives": 1})
        with pytest.raises(dc.InvalidConfig, match="enable_calibrator must be True or False"):
            TaylorSeerCalibratorConfig(enable_calibrator="no")


# Offload, parallelism, quantisation, profiling and logging; adapters of single models.
# And `load` of ours reads what `precompile` wrote; of cache-dit, quantised weights.
NOT_HERE = frozenset(
    (
        "BlockAdapterRegister", "ENV", "LayerwiseOffloadHandle", "LayerwiseOffloadHandleGroup",
        "ParallelismBackend", "PatchFunctor", "ProfilerContext", "QuantizeBackend",
        "create_profiler_context", "disable_print", "get_layerwise_offload_handles",
        "get_profiler_output_dir", "init_logger", "layerwise_cpu_offload", "layerwise_offload",
        "maybe_empty_cache", "parse_extra_modules", "profile_function", "quantize",
        "remove_layerwise_offload", "set_attn_backend", "set_profiler_output_dir",
        "supported_matrix",
    )
)  # fmt: skip

YAML = """
cache_config:
  max_warmup_steps: 4
  Fn_compute_blocks: 1
  steps_computation_mask: fast
  num_inference_steps: 28
  enable_taylorseer: true
  taylorseer_order: 2
"""


class TestFiles:
    def load(self, folder: Path, text: str) -> object:
        path = folder / "cache.yaml"
        path.write_text(text)
        return dc.load_configs(str(path))

    def test_arguments_of_enable_cache(self, tmp_path):
        model, configs = OwnTransformer(), self.load(tmp_path, YAML)
        dc.enable_cache(model, **configs)
        mask = "1111110100010000100000100001"
        assert dc.strify(configs) == f"DBCache_F1B0_W4I1M0MC0_R0.08_SCM{mask}_dynamic_N28_T1O2"
        assert dc.strify(model) == dc.strify(configs)
        # As in cache-dit's loader, the text's stream is replayed unless that is said.
        assert configs["calibrator_config"].enable_encoder_calibrator is False
        assert (
            dc.load_configs(tmp_path / "cache.yaml", return_dict=False)[0]
            == configs["cache_config"]
        )

    def test_the_old_flat_form(self):
        cache, calibrator = dc.load_cache_config({"cache_type": "DBPrune", "max_warmup_steps": 2})
        assert cache == DBPruneConfig(max_warmup_steps=2, cache_type="DBPrune")
        assert calibrator is None
        assert dc.load_options({"enable_dmd": True})["calibrator_config"] == (
            dc.DMDCalibratorConfig(enable_encoder_calibrator=True)
        )

    def test_options_of_a_forecast_that_is_said_to_be_off_change_nothing(self):
        options = {"enable_taylorseer": False, "taylorseer_order": 2, "enable_dmd": None}
        assert dc.load_cache_config(options) == (DBCacheConfig(), None)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            # The typo of cache-dit's own documentation, which does nothing there.
            ("cache_config: {enable_sperate_cfg: true}", "did you mean enable_separate_cfg"),
            ("cache_confg: {max_warmup_steps: 2}", "option cache_confg: did you mean cache_config"),
            (
                "cache_confg: {max_warmup_steps: 1}\nattention_backend: a",
                "did you mean cache_config",
            ),
            ("cache_config: {steps_computation_mask: fast}", "takes num_inference_steps beside it"),
            (
                "{steps_computation_mask: fast, num_inference_steps: '28'}",
                "num_inference_steps must be an integer of at least 1, got '28'",
            ),
            ("{steps_computation_mask: quick}", "steps_computation_mask must be one of 'slow', "),
            ("cache_config: [1, 2]", "cache_config must hold options by name"),
            ("a: b: c", "is no YAML"),
        ],
    )
    def test_refused(self, tmp_path, text, sentence):
        with pytest.raises(dc.InvalidConfig, match=sentence):
            self.load(tmp_path, text)

    def test_encodings(self, tmp_path):
        """A byte order mark says which one, as editors of Windows write it."""
        path = tmp_path / "a b \u00fc.yaml"
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_text("cache_config: {Fn_compute_blocks: 2}  # \u00fc", encoding=encoding)
            assert dc.load_configs(path)["cache_config"] == DBCacheConfig(Fn_compute_blocks=2)
        path.write_text("# \u00fc", encoding="latin-1")
        with pytest.raises(dc.InvalidConfig, match="yaml is no YAML: "):
            dc.load_configs(path)

    @pytest.mark.parametrize("source", [None, 3, ["cache.yaml"]])
    def test_what_is_neither_a_path_nor_a_dict(self, source):
        with pytest.raises(dc.InvalidConfig, match="expected the path of a YAML file or a dict"):
            dc.load_configs(source)

    def test_sections_that_enable_cache_refuses(self, tmp_path):
        configs = self.load(tmp_path, "parallelism_config: {ulysses_size: 2}")
        assert configs["cache_config"] is None
        with pytest.raises(dc.InvalidConfig, match="parallelism is no part of the cache"):
            dc.enable_cache(OwnTransformer(), **configs)


def test_refresh_context_forgets_and_changes():
    model = OwnTransformer()
    dc.enable_cache(model, residual_diff_threshold=1.0, max_warmup_steps=2, enable_taylorseer=True)
    own_loop(model, 4)
    dc.refresh_context(model, num_inference_steps=6, max_warmup_steps=1, verbose=True)
    assert dc.summary(model).state_nbytes == 0
    assert dc.strify(model) == "DBCache_F8B0_W1I1M0MC0_R1.0_N6_T1O1"
    own_loop(model, 6)
    assert [step.hit for step in dc.summary(model).steps[-6:]] == [False] + [True] * 5
    dc.refresh_context(model, cache_config=DBCacheConfig().reset(max_cached_steps=2))
    assert dc.strify(model) == "DBCache_F8B0_W1I1M2MC0_R1.0_N6_T1O1"


def test_refresh_context_takes_what_load_configs_returns():
    model = dc.enable_cache(OwnTransformer())
    configs = dc.load_configs({"cache_config": {"max_warmup_steps": 3, "enable_taylorseer": True}})
    dc.refresh_context(model, **configs)
    assert dc.strify(model) == "DBCache_F8B0_W3I1M0MC0_R0.08_T1O1"
    dc.refresh_context(
        model, **dc.load_configs({"cache_config": {"Fn_compute_blocks": 1}}, reset=True)
    )
    assert dc.strify(model) == "DBCache_F1B0_W3I1M0MC0_R0.08_T1O1"
    with pytest.raises(dc.InvalidConfig, match="attention is no part of the cache"):
        dc.refresh_context(model, **dc.load_configs({"attention_backend": "native"}))


def test_patterns_tell_what_cache_dits_tell():
    first = [p for p in dc.ForwardPattern if p.Return_H_First]
    only = [p for p in dc.ForwardPattern if p.Return_H_Only]
    alone = [p for p in dc.ForwardPattern if p.Forward_H_only]
    assert first == [dc.Pattern_0, dc.Pattern_4] and only == [dc.Pattern_2, dc.Pattern_3]
    assert alone == [dc.Pattern_3, dc.Pattern_4, dc.Pattern_5]


def test_summary_takes_cache_dits_arguments(capsys):
    model = OwnTransformer()
    dc.enable_cache(model)
    own_loop(model, 2)
    assert str(dc.summary(model, details=True, logging=True)) == str(dc.summary(model))
    assert dc.summary(dc.get_adapter(model)).num_computed == 2


def test_block_range():
    assert dc.block_range(0, 16, 4) == [0, 4, 8, 12, 15]
    assert dc.block_range(2, 5) == [0, 2, 3, 4]
    with pytest.raises(dc.InvalidConfig, match=r"block_range\(4, 4, 1\) has no blocks"):
        dc.block_range(4, 4)


def test_masks_by_bins_need_no_number_of_steps():
    assert dc.steps_mask(compute_bins=[2, 1], cache_bins=[1, 2]) == (1, 1, 0, 1, 0, 1)
    assert len(dc.steps_mask(mask_policy="fast")) == 28


def test_compile_configs():
    from torch._inductor import config  # noqa: PLC0415

    dynamo = torch._dynamo.config
    with (
        dynamo.patch(recompile_limit=8, accumulated_recompile_limit=256),
        config.patch(coordinate_descent_tuning=False),
    ):
        dc.set_compile_configs(descent_tuning=False, cuda_graphs=False)
        assert (dynamo.recompile_limit, config.coordinate_descent_tuning) == (1024, False)
        dc.set_compile_configs()
        assert config.coordinate_descent_tuning is True
        with pytest.raises(dc.InvalidConfig, match="cuda_graphs is not set here"):
            dc.set_compile_configs(cuda_graphs=True)
        with pytest.raises(dc.InvalidConfig, match="set torch._inductor.config.fx_graph_cache"):
            dc.set_compile_configs(fx_graph_cache=False)
        with pytest.raises(dc.InvalidConfig, match="did you mean descent_tuning"):
            dc.set_compile_configs(descend_tuning=True)


def test_supported_pipelines_are_those_of_the_table():
    table = TABLE.read_text()
    assert SUPPORTED.read_text() == as_json(supported_in(table))
    num, names = supported = dc.supported_pipelines()
    assert num == len(names) >= 60 and "FluxTransformer2DModel" in names
    assert f"diffusers {supported.versions['diffusers']}." in table
    assert all(reason in table for reason in supported.not_cached.values())
