"""`DBCacheConfig` and `DBPruneConfig` with cache-dit's names and defaults."""

import enum
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import ClassVar, cast

from dit_cachegraph.compat.options import Options
from dit_cachegraph.config import resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.rule import Rule
from dit_cachegraph.policy.rules import dbcache, dbprune

FIRST_BLOCKS = 8


class CacheType(enum.Enum):
    """Which algorithm."""

    NONE = "NONE"
    DBCache = "DBCache"
    DBPrune = "DBPrune"

    def __str__(self) -> str:
        return self.value


RULES: Mapping[CacheType, str] = MappingProxyType(
    {CacheType.DBCache: "dbcache", CacheType.DBPrune: "dbprune"}
)
_SPELLINGS: Mapping[CacheType, tuple[str, ...]] = MappingProxyType(
    {
        CacheType.NONE: ("NONE", "NO_CACHE", "NOCACHE", "NC"),
        CacheType.DBCache: ("DUAL_BLOCK_CACHE", "DB_CACHE", "DBCACHE", "DB"),
        CacheType.DBPrune: ("DYNAMIC_BLOCK_PRUNE", "DB_PRUNE", "DBPRUNE", "DBP"),
    }
)


def cache_type(hint: object) -> CacheType:
    """The algorithm of that name, in any of cache-dit's spellings; None is `CacheType.NONE`.

    Raises:
        InvalidConfig: no such name.
    """
    if isinstance(hint, CacheType):
        return hint
    for kind, spellings in _SPELLINGS.items():
        if str(hint).upper() in spellings:
            return kind
    raise InvalidConfig(f"cache_type must be 'DBCache', 'DBPrune' or 'NONE', got {hint!r}")


def _defaults(rule: type[Rule], kind: CacheType) -> Mapping[str, object]:
    """cache-dit's: those of our rule, but for the first blocks and the batch."""
    ours = {f.name: f.default for f in fields(rule) if f.name != "shrinks_to_fit"}  # type: ignore[arg-type]
    named = {"Fn_compute_blocks": FIRST_BLOCKS, "batch_rule": "mean", "num_inference_steps": None}
    return MappingProxyType({"cache_type": kind, **ours, **named})


class BasicCacheConfig(Options):
    """The options of a cache."""

    defaults: ClassVar[Mapping[str, object]] = _defaults(dbcache.DBCache, CacheType.DBCache)

    @property
    def kind(self) -> CacheType:
        """Which algorithm this asks for."""
        return cache_type(self.given().get("cache_type", type(self).defaults["cache_type"]))

    def settings(self) -> dict[str, object]:
        """The same for `configure`. First blocks that weren't given are fewer in a small model."""
        settings = super().settings()
        settings.pop("cache_type", None)
        if "Fn_compute_blocks" in settings:
            settings["shrinks_to_fit"] = "Fn_compute_blocks" not in self.given()
        if self.kind is CacheType.NONE or (self._is_partial and "cache_type" not in self.given()):
            return settings
        return {"rule": RULES[self.kind], **settings}

    def whole_settings(self) -> dict[str, object]:
        """The same, and DBCache's defaults for what `reset` has left open."""
        return {**DBCacheConfig().settings(), **self.settings()}

    def by_name(self) -> dict[str, object]:
        if self.kind is CacheType.NONE:
            raise InvalidConfig(
                "cache_type='NONE' is no rule: enabled=False runs every block and keeps nothing"
            )
        settings = self.whole_settings()
        rule = cast(dbcache.DBCache, resolve(settings).rule)
        return {**settings, **asdict(rule)}

    def strify(self) -> str:
        """A short name, for a file."""
        options = self.as_dict()
        caps = [
            max(0, limit) if isinstance(limit, int) else 0
            for limit in (options["max_cached_steps"], options["max_continuous_cached_steps"])
        ]
        name = (
            f"{self.kind}_F{options['Fn_compute_blocks']}B{options['Bn_compute_blocks']}_"
            f"W{options['max_warmup_steps']}I{options['warmup_interval']}"
            f"M{caps[0]}MC{caps[1]}_R{options['residual_diff_threshold']}"
        )
        mask, steps = options["steps_computation_mask"], options["num_inference_steps"]
        if isinstance(mask, list | tuple):
            name += f"_SCM{''.join(map(str, mask))}_{options['steps_computation_policy']}"
        if steps is not None:
            name += f"_N{steps}"
        if options["force_refresh_step_hint"] is not None:
            name += f"_FR{options['force_refresh_step_hint']}"
            name += f"_{options['force_refresh_step_policy']}"
        if options["enable_separate_cfg"] is not None:
            name += f"_CFG{int(bool(options['enable_separate_cfg']))}"
        return name


class DBCacheConfig(BasicCacheConfig):
    """The options of DBCache, with cache-dit's defaults: 8 first blocks, where the model has more
    than that, and a batch that decides by its mean."""


class DBPruneConfig(BasicCacheConfig):
    """The options of DBPrune, with cache-dit's defaults."""

    defaults: ClassVar[Mapping[str, object]] = _defaults(dbprune.DBPrune, CacheType.DBPrune)
