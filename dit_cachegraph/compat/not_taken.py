"""What cache-dit's `enable_cache` does beside caching, and where to do it instead."""

from types import MappingProxyType

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
