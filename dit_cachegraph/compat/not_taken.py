"""What cache-dit does beside caching, and where to do it instead."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from dit_cachegraph.exc import InvalidConfig

INSTEAD = MappingProxyType(
    {
        "parallelism_config": (
            "parallelism is no part of the cache: set it up by diffusers "
            "(`transformer.enable_parallelism(...)`) before enable_cache"
        ),
        "attention_backend": (
            "attention is no part of the cache: call `transformer.set_attention_backend(...)` of "
            "diffusers before enable_cache"
        ),
        "quantize_config": (
            "quantisation is no part of the cache: quantise the transformer first, by diffusers or "
            "torchao, and call enable_cache after"
        ),
    }
)
_OFFLOAD = (
    "offload is no part of the cache: call `pipe.enable_model_cpu_offload()` or "
    "`transformer.enable_group_offload(...)` of diffusers"
)
_PROFILE = (
    "profiling is no part of the cache: use torch.profiler; `summary` and `plot` tell of steps"
)
_ADAPTERS = (
    "blocks are found in the graph of the forward as it is, and no model needs an adapter: leave "
    "it out, and call enable_cache with the pipeline or the transformer"
)
_NAMES = MappingProxyType(
    {
        "quantize": INSTEAD["quantize_config"],
        "QuantizeBackend": INSTEAD["quantize_config"],
        "set_attn_backend": INSTEAD["attention_backend"],
        "ParallelismBackend": INSTEAD["parallelism_config"],
        "BlockAdapterRegister": _ADAPTERS,
        "PatchFunctor": _ADAPTERS,
        "parse_extra_modules": INSTEAD["parallelism_config"],
        "init_logger": (
            "use logging.getLogger of Python; ours is the logger `dit_cachegraph`, and "
            "`summary(pipe, logging=True)` writes to it"
        ),
        "disable_print": "use contextlib.redirect_stdout of Python; nothing is printed here",
        "maybe_empty_cache": "call `torch.cuda.empty_cache()`; `reset(pipe)` frees what is kept",
        "ENV": "the variables CACHE_DIT_* mean nothing here: give options to the calls themselves",
        "supported_matrix": "call supported_pipelines, or read docs/models.md",
        **dict.fromkeys(
            ("layerwise_offload", "layerwise_cpu_offload", "remove_layerwise_offload",
             "get_layerwise_offload_handles", "LayerwiseOffloadHandle",
             "LayerwiseOffloadHandleGroup"), _OFFLOAD,
        ),
        **dict.fromkeys(
            ("ProfilerContext", "profile_function", "create_profiler_context",
             "get_profiler_output_dir", "set_profiler_output_dir"), _PROFILE,
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A name of cache-dit's that can be imported, so that a script can be read, and told where it
    is called, derived from, or asked for an attribute."""

    name: str

    def _refuse(self) -> NoReturn:
        raise InvalidConfig(f"{self.name}: {_NAMES[self.name]}")

    def __call__(self, *_args: object, **_options: object) -> NoReturn:
        self._refuse()

    def __mro_entries__(self, _bases: tuple[object, ...]) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()


def find_not_taken(name: str) -> NotTaken | None:
    """What stands for the name, if it is one of cache-dit's that isn't here."""
    return NotTaken(name) if name in _NAMES else None


class ParallelismConfig:
    """Taken by nothing here; so that a script can be read, and told."""

    def __init__(self, **options: object) -> None:
        self.options = options


class QuantizeConfig:
    """Taken by nothing here; so that a script can be read, and told."""

    def __init__(self, **options: object) -> None:
        self.options = options


def refuse_not_taken(
    parallelism_config: object, attention_backend: object, quantize_config: object
) -> None:
    """Raises: InvalidConfig, with what to do instead, for any that is not None."""
    given = (parallelism_config, attention_backend, quantize_config)
    for (name, instead), value in zip(INSTEAD.items(), given, strict=True):
        if value is not None:
            raise InvalidConfig(f"{name}: {instead}")
