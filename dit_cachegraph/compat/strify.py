"""`strify`: a name for the settings of a cache, for the names of files."""

from collections.abc import Mapping
from dataclasses import fields

from dit_cachegraph.compat.cache_config import BasicCacheConfig, DBCacheConfig, DBPruneConfig
from dit_cachegraph.compat.calibrators import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from dit_cachegraph.compat.load_configs import load_configs
from dit_cachegraph.compat.options import Options
from dit_cachegraph.config import resolve
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Rule
from dit_cachegraph.targets import modules_in

CALIBRATORS = (TaylorSeerCalibratorConfig, DMDCalibratorConfig, FoCaCalibratorConfig)
CACHES = (DBCacheConfig, DBPruneConfig)


def strify(target: object) -> str:
    """Such as `DBCache_F8B0_W8I1M0MC0_R0.08_T1O1`: of a pipeline or transformer by its present
    settings, or of what `load_configs` reads or returns."""
    if isinstance(target, Mapping):
        configs = target if "calibrator_config" in target else load_configs(target)
        assert isinstance(configs, Mapping)
        return _joined(configs["cache_config"], configs["calibrator_config"])
    settings = resolve(*map(dict, REGISTRY.of_module(modules_in(target)[0]).overrides))
    cache = _of_rule(settings.rule, settings.common.num_inference_steps)
    if cache is None:
        return "_".join((settings.rule.name, settings.predictor.name))
    return _joined(cache, _of_predictor(settings.predictor))


def _joined(cache: BasicCacheConfig | None, calibrator: CalibratorConfig | None) -> str:
    names = [config.strify() for config in (cache, calibrator) if config is not None]
    return "_".join(name for name in names if name)


def _of_rule(rule: Rule, num_steps: int | None) -> BasicCacheConfig | None:
    found = next((kind for kind in CACHES if kind().settings()["rule"] == rule.name), None)
    if found is None:
        return None
    return found(**_options(found, rule), num_inference_steps=num_steps)


def _of_predictor(predictor: Predictor) -> CalibratorConfig | None:
    found = (kind for kind in CALIBRATORS if kind().settings()["predictor"] == predictor.name)
    kind = next(found, None)
    return None if kind is None else kind(**_options(kind, predictor))


def _options(kind: type[Options], chosen: Rule | Predictor) -> dict[str, object]:
    known = (f.name for f in fields(chosen) if f.name in kind.defaults)  # type: ignore[arg-type]
    return {name: getattr(chosen, name) for name in known}
