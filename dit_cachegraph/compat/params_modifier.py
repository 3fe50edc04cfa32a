"""`ParamsModifier`: other options for some of the transformers, or of their block lists."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import cast

from dit_cachegraph.compat.cache_config import BasicCacheConfig
from dit_cachegraph.compat.calibrators import CalibratorConfig
from dit_cachegraph.compat.flat_options import settings_given
from dit_cachegraph.config import CommonSettings, resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import Layers, merge
from dit_cachegraph.policy.rules.block_lists import BlockLists

Settings = Mapping[str, object]
_COMMON = frozenset(f.name for f in fields(CommonSettings))


class ParamsModifier:
    """What is other than in `enable_cache`: all options of `cache_config` (after its `reset`, those
    that were given), the calibrator, and flat options."""

    def __init__(
        self,
        cache_config: BasicCacheConfig | None = None,
        calibrator_config: CalibratorConfig | None = None,
        **flat: object,
    ) -> None:
        given = settings_given(cache_config, calibrator_config, flat)
        resolve(given)
        self.settings: Settings = given


Modifiers = ParamsModifier | Sequence[ParamsModifier] | Sequence[Sequence[ParamsModifier]] | None


def settings_of_transformers(
    base: Settings, modifiers: Modifiers, num_transformers: int
) -> list[Settings]:
    """The settings of each transformer.

    One modifier is for all; a flat list has one a transformer, or, where there is only one
    transformer, one a block list; a nested list has those of the block lists of each.

    Raises:
        InvalidConfig: another number of them, or block lists that differ in what is of a whole
            transformer.
    """
    if modifiers is None:
        return [base] * num_transformers
    if isinstance(modifiers, ParamsModifier):
        return [_with_modifiers(base, [modifiers])] * num_transformers
    nested = [_modifiers_in(own) for own in _listed(modifiers)]
    each = _by_transformer(nested, num_transformers)
    return [_with_modifiers(base, own) for own in each]


def _modifiers_in(own: object) -> list[ParamsModifier]:
    if isinstance(own, ParamsModifier):
        return [own]
    each = _listed(own)
    if not all(isinstance(modifier, ParamsModifier) for modifier in each):
        raise InvalidConfig(f"params_modifiers must be made of ParamsModifier, got {each!r} in it")
    return cast(list[ParamsModifier], each)


def _listed(given: object) -> list[object]:
    if not isinstance(given, list | tuple):
        raise InvalidConfig(f"params_modifiers must be a ParamsModifier or a list, got {given!r}")
    return list(given)


def _by_transformer(
    nested: list[list[ParamsModifier]], num_transformers: int
) -> list[list[ParamsModifier]]:
    if num_transformers == 1:
        return [[modifier for own in nested for modifier in own]]
    if len(nested) != num_transformers:
        raise InvalidConfig(
            f"params_modifiers has {len(nested)} entries for {num_transformers} transformers: "
            "give one modifier, or a list of them, for each"
        )
    return nested


def _with_modifiers(base: Settings, modifiers: Sequence[ParamsModifier]) -> Settings:
    """The settings of one transformer whose block lists have these modifiers, in their order: those
    of one trunk where all are the same."""
    each = [{**base, **modifier.settings} for modifier in modifiers]
    if not each:
        return base
    if all(settings == each[0] for settings in each):
        return each[0]
    common = [{n: v for n, v in settings.items() if n in _COMMON} for settings in each]
    if any(settings != common[0] for settings in common):
        names = sorted({n for settings in common for n, v in settings.items() if v != base.get(n)})
        raise InvalidConfig(
            f"params_modifiers: {', '.join(names)} is of a whole transformer and can't differ from "
            "block list to block list: give it in cache_config"
        )
    lists = [{n: v for n, v in settings.items() if n not in _COMMON} for settings in each]
    return {**common[0], "block_lists": lists}


def changed_of_each_list(overrides: Layers, changed: Settings) -> Settings:
    """`changed` as it is, or, where each block list goes by settings of its own, as what it makes
    of those of each: they hold where it says nothing."""
    current: Settings = {}
    for layer in overrides:
        current = merge(current, dict(layer))
    if current.get("rule") != BlockLists.name:
        return changed
    common = {name: value for name, value in changed.items() if name in _COMMON}
    own = {name: value for name, value in changed.items() if name not in _COMMON}
    lists = cast(Sequence[Sequence[tuple[str, object]]], current["block_lists"])
    return {**common, "block_lists": [merge(dict(settings), own) for settings in lists]}
