"""Flat options, `enable_cache(pipe, Fn_compute_blocks=1, enable_taylorseer=True)` and those of a
YAML file, sorted into the configuration of a cache and that of a calibrator."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dit_cachegraph.compat.cache_config import (
    BasicCacheConfig,
    CacheType,
    DBCacheConfig,
    DBPruneConfig,
    cache_type,
)
from dit_cachegraph.compat.calibrators import (
    CalibratorConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from dit_cachegraph.config import known_settings, unknown_option
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import check_bool


@dataclass(frozen=True, slots=True)
class _Calibrator:
    """A calibrator's class, and what its options are called in flat form."""

    kind: type[CalibratorConfig]
    options: Mapping[str, str]
    encoder: bool
    """Whether the text's stream is forecast, unless that is said."""


def _calibrator(
    name: str, kind: type[CalibratorConfig], encoder: bool, **renamed: str
) -> _Calibrator:
    own = {option: option for option in kind.defaults if option.startswith(name)}
    common = {f"enable_encoder_{name}": "enable_encoder_calibrator", **renamed}
    return _Calibrator(kind, MappingProxyType({**own, **common}), encoder)


_CACHE_TYPE = MappingProxyType({"calibrator_cache_type": "calibrator_cache_type"})
CALIBRATORS: Mapping[str, _Calibrator] = MappingProxyType(
    {
        "enable_taylorseer": _calibrator(
            "taylorseer",
            TaylorSeerCalibratorConfig,
            False,
            taylorseer_cache_type="calibrator_cache_type",
        ),
        "enable_dmd": _calibrator("dmd", DMDCalibratorConfig, True, **_CACHE_TYPE),
        "enable_foca": _calibrator("foca", FoCaCalibratorConfig, False, **_CACHE_TYPE),
    }
)


def configs_of(
    flat: Mapping[str, object], *, is_partial: bool = False
) -> tuple[BasicCacheConfig, CalibratorConfig | None]:
    """Both configurations. `is_partial`: what isn't given is left open, not at its default.

    Raises:
        InvalidConfig: an unknown name, with the nearest known one, or a bad value, or two
            calibrators at once.
    """
    _check_names(flat)
    calibrator_names = _calibrator_names()
    own = {name: value for name, value in flat.items() if name not in calibrator_names}
    prunes = cache_type(str(own.get("cache_type", "DBCache"))) is CacheType.DBPrune
    of_dbprune = sorted(own.keys() & DBPruneConfig.defaults.keys() - DBCacheConfig.defaults.keys())
    if of_dbprune and not prunes:
        raise InvalidConfig(
            f"{', '.join(of_dbprune)}: of DBPrune alone; give cache_type='DBPrune' beside it"
        )
    cache = DBPruneConfig() if prunes else DBCacheConfig()
    cache = cache.reset(**own) if is_partial else cache.update(**own)
    return cache, _calibrator_of(flat)


def _calibrator_of(flat: Mapping[str, object]) -> CalibratorConfig | None:
    for switch in CALIBRATORS:
        if flat.get(switch) is not None:
            check_bool(switch, flat[switch])
    chosen = [name for name in CALIBRATORS if flat.get(name)]
    if len(chosen) > 1:
        raise InvalidConfig(f"{' and '.join(chosen)}: only one of them can be on")
    _check_switches(flat)
    if not chosen:
        return None
    calibrator = CALIBRATORS[chosen[0]]
    options = {calibrator.options[n]: v for n, v in flat.items() if n in calibrator.options}
    return calibrator.kind(**{"enable_encoder_calibrator": calibrator.encoder, **options})


def _check_switches(flat: Mapping[str, object]) -> None:
    """Raises: InvalidConfig, for an option of a calibrator of which it isn't said whether it is on:
    it would change nothing."""
    for name, value in flat.items():
        switches = [s for s, of in CALIBRATORS.items() if name in of.options]
        if switches and value is not None and not flat.keys() & switches:
            beside = " or ".join(f"{switch}=True" for switch in switches)
            raise InvalidConfig(f"{name}: of a forecast that is off; give {beside} beside it")


def _calibrator_names() -> frozenset[str]:
    options = (name for calibrator in CALIBRATORS.values() for name in calibrator.options)
    return frozenset(CALIBRATORS) | frozenset(options)


def _check_names(flat: Mapping[str, object]) -> None:
    known = _calibrator_names() | frozenset(DBPruneConfig.defaults)
    for name in flat:
        if name in known:
            continue
        if name in CalibratorConfig.defaults:
            switches = ", ".join(f"{switch}=True" for switch in CALIBRATORS)
            raise InvalidConfig(
                f"{name} is of a calibrator's own configuration: give that as calibrator_config=, "
                f"or one of {switches}"
            )
        if name in known_settings():
            raise InvalidConfig(
                f"{name} is no option of cache-dit's: leave it out, and call "
                f"configure(pipe, {name}=...) after enable_cache"
            )
        raise unknown_option(name, known)


def check_kinds(cache_config: object, calibrator_config: object) -> None:
    """Raises: InvalidConfig, where one of them is something else, such as the other one."""
    for name, given, kind, kinds in (
        ("cache_config", cache_config, BasicCacheConfig, "DBCacheConfig or DBPruneConfig"),
        ("calibrator_config", calibrator_config, CalibratorConfig, "CalibratorConfig or its kinds"),
    ):
        if given is not None and not isinstance(given, kind):
            raise InvalidConfig(
                f"{name} must be of dit_cachegraph's {kinds}, got {given!r}; load_configs reads a "
                "dict or a file"
            )


def settings_given(
    cache_config: BasicCacheConfig | None,
    calibrator_config: CalibratorConfig | None,
    flat: Mapping[str, object],
) -> dict[str, object]:
    """What a configuration, a calibrator and flat options say together, and no more than that."""
    check_kinds(cache_config, calibrator_config)
    given: dict[str, object] = {} if cache_config is None else _said_by(cache_config)
    if flat:
        cache, calibrator = configs_of(flat, is_partial=True)
        given |= _said_by(cache)
        calibrator_config = calibrator or calibrator_config
    if calibrator_config is not None:
        given |= calibrator_config.settings()
    return given


def _said_by(cache: BasicCacheConfig) -> dict[str, object]:
    return {"enabled": False} if cache.kind is CacheType.NONE else cache.settings()
