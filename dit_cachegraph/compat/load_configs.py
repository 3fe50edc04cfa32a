"""cache-dit's YAML files, and the same as dictionaries.

cache_config:
  Fn_compute_blocks: 1
  steps_computation_mask: fast
  num_inference_steps: 28
  enable_taylorseer: true
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_cachegraph.compat.cache_config import BasicCacheConfig
from dit_cachegraph.compat.calibrators import CalibratorConfig
from dit_cachegraph.compat.flat_options import configs_of
from dit_cachegraph.compat.not_taken import ParallelismConfig, QuantizeConfig
from dit_cachegraph.config import unknown_option
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.checks import MASK_POLICIES, check_choice, check_int
from dit_cachegraph.policy.step_mask import steps_mask

Source = str | Path | Mapping[str, object]
SECTIONS = ("cache_config", "parallelism_config", "attention_backend", "quantize_config")


def load_configs(
    path_or_dict: Source, return_dict: bool = True, *, reset: bool = False
) -> dict[str, Any] | tuple:
    """The arguments of `enable_cache` in a file: by name, or in their order as a tuple. `reset`:
    what isn't given is left open, not at its default.

    Raises:
        InvalidConfig: an unknown name, with the nearest known one, a bad value, or no YAML.
    """
    read = _read(path_or_dict)
    cache, calibrator = load_cache_config(read, reset)
    configs = {
        "cache_config": cache,
        "calibrator_config": calibrator,
        "parallelism_config": load_parallelism_config(read),
        "attention_backend": load_attn_backend_config(read),
        "quantize_config": load_quantize_config(read),
    }
    return configs if return_dict else tuple(configs.values())


def load_cache_config(
    path_or_dict: Source, reset: bool = False
) -> tuple[BasicCacheConfig | None, CalibratorConfig | None]:
    """The configurations of cache and calibrator in a file; the old flat form is read too.
    `reset`: what isn't given is left open, not at its default."""
    read = _read(path_or_dict)
    sections = [name for name in read if name in SECTIONS]
    if not sections:
        _check_sections(read)
        return configs_of(_with_mask(read), is_partial=reset)
    for name in read:
        if name not in SECTIONS:
            raise unknown_option(name, SECTIONS)
    cache = read.get("cache_config")
    if cache is None:
        return None, None
    return configs_of(_with_mask(_section("cache_config", cache)), is_partial=reset)


def _check_sections(read: Mapping[str, object]) -> None:
    """Raises: InvalidConfig, for a section by another name; no option holds options."""
    for name, value in read.items():
        if isinstance(value, Mapping):
            raise unknown_option(name, SECTIONS)


def load_options(path_or_dict: Source, reset: bool = False) -> dict[str, Any]:
    """The same as the arguments `cache_config` and, where there is one, `calibrator_config`."""
    cache, calibrator = load_cache_config(path_or_dict, reset)
    rest = {} if calibrator is None else {"calibrator_config": calibrator}
    return {"cache_config": cache, **rest}


def load_parallelism_config(path_or_dict: Source) -> ParallelismConfig | None:
    """What `enable_cache` refuses, if a file has it."""
    read = _read(path_or_dict).get("parallelism_config")
    return None if read is None else ParallelismConfig(**_section("parallelism_config", read))


def load_quantize_config(path_or_dict: Source) -> QuantizeConfig | None:
    """What `enable_cache` refuses, if a file has it."""
    read = _read(path_or_dict).get("quantize_config")
    return None if read is None else QuantizeConfig(**_section("quantize_config", read))


def load_attn_backend_config(path_or_dict: Source) -> str | None:
    """What `enable_cache` refuses, if a file has it."""
    read = _read(path_or_dict).get("attention_backend")
    return None if read is None else str(read)


def _read(path_or_dict: Source) -> Mapping[str, object]:
    if isinstance(path_or_dict, Mapping):
        return path_or_dict
    if not isinstance(path_or_dict, str | Path):
        raise InvalidConfig(f"expected the path of a YAML file or a dict, got {path_or_dict!r}")
    try:
        import yaml  # noqa: PLC0415  # Needed for files alone.
    except ImportError:
        raise InvalidConfig("reading a YAML file takes PyYAML: pip install pyyaml") from None
    try:
        # As bytes: a byte order mark says which encoding, and a wrong one is an error of YAML.
        read = yaml.safe_load(Path(path_or_dict).read_bytes())
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path_or_dict} is no YAML: {error}") from error
    return _section(str(path_or_dict), read)


def _section(name: str, read: object) -> dict[str, Any]:
    if not isinstance(read, Mapping) or not all(isinstance(key, str) for key in read):
        raise InvalidConfig(f"{name} must hold options by name, got {read!r}")
    return dict(read)


def _with_mask(options: Mapping[str, object]) -> Mapping[str, object]:
    """The same with a mask that is given by name laid out over the steps."""
    named, num_steps = options.get("steps_computation_mask"), options.get("num_inference_steps")
    if not isinstance(named, str):
        return options
    check_choice("steps_computation_mask", named, MASK_POLICIES)
    if num_steps is None:
        raise InvalidConfig(
            f"steps_computation_mask: {named} takes num_inference_steps beside it, to be laid over"
        )
    check_int("num_inference_steps", num_steps, at_least=1)
    assert isinstance(num_steps, int)
    return {**options, "steps_computation_mask": steps_mask(None, None, num_steps, named)}
