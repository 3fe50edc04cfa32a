"""Layers of settings: what a later one changes in those before.

{"every": 2}, {"residual_diff_threshold": 0.1}    another rule: `every` waits for its own
{"every": 2}, {"max_warmup_steps": 4}             an option of the same rule: `every` holds
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import cast

import numpy as np

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.policy.catalog import PREDICTORS, RULES, options_of
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.presets import DEFAULT_PRESET, PRESETS
from dit_cachegraph.policy.rule import Rule
from dit_cachegraph.policy.rules.block_lists import BlockLists, Part

Overrides = Mapping[str, object]
Layers = tuple[tuple[tuple[str, object], ...], ...]
"""Layers of settings as they were given, the last one on top; hashable."""


class Configuration(abc.ABC):
    """What can be given in the place of a rule or predictor, and stands for settings by name."""

    @abc.abstractmethod
    def by_name(self) -> dict[str, object]:
        """A `rule` or `predictor` with all of its options, and what is said beside it.

        Raises:
            InvalidConfig: it says something that no rule or predictor can.
        """


@dataclass(frozen=True, slots=True)
class Kinds:
    """What can be chosen among: all rules, or all predictors. `home` is that of options which
    several of them have."""

    key: str
    base: type
    by_name: Mapping[str, type]
    home: str

    @property
    def options(self) -> frozenset[str]:
        return frozenset[str]().union(*map(options_of, self.by_name.values()))


RULE_KINDS = Kinds("rule", Rule, RULES, "dbcache")
PREDICTOR_KINDS = Kinds("predictor", Predictor, PREDICTORS, "replay")


def add_layer(layers: Layers, given: Overrides) -> Layers:
    """`given` on top of the layers, without those that later ones cover wholly."""
    covered: set[str] = set()
    kept = []
    for layer in reversed((*layers, tuple(frozen(given).items()))):
        names = {name for name, _ in layer}
        if not names <= covered:
            kept.append(layer)
        covered |= names
    return tuple(reversed(kept))


def frozen(settings: Overrides) -> dict[str, object]:
    """The settings with their sequences as tuples, dicts within them as pairs, and configurations
    as what they say: what changes later changes nothing."""
    return {name: _frozen(value) for name, value in _without_configurations(settings).items()}


def _frozen(value: object) -> object:
    if isinstance(value, Part):
        return value
    if isinstance(value, Mapping):
        return tuple(frozen(value).items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(item) for item in value)
    return value


def merge(lower: Overrides, given: Overrides) -> dict[str, object]:
    """One layer on top of what those before it add up to.

    Raises:
        InvalidConfig: it asks for two rules, or two predictors, at once.
    """
    given = _expanded(_without_configurations(given))
    merged = dict(lower)
    if "preset" in given:
        _drop(merged, ("preset", "rule", "predictor", *RULE_KINDS.options))
        _drop(merged, PREDICTOR_KINDS.options)
    for kinds in (RULE_KINDS, PREDICTOR_KINDS):
        choice = _choice(kinds, merged, given)
        if choice is not None:
            merged[kinds.key] = choice
            if kinds.key == "rule":
                merged.pop("preset", None)
    return {**merged, **{n: v for n, v in given.items() if n not in ("rule", "predictor")}}


def _drop(merged: dict[str, object], names: Sequence[str] | frozenset[str]) -> None:
    for name in names:
        merged.pop(name, None)


def _options(kinds: Kinds, choice: object) -> frozenset[str]:
    return options_of(kinds.by_name[choice]) if isinstance(choice, str) else frozenset()


def plain(value: object) -> object:
    """A number or an array of numpy as Python's: published ratios and masks come so."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value


def _without_configurations(given: Overrides) -> Overrides:
    """The same with what configurations say; a name that is given beside one wins."""
    given = {name: plain(value) for name, value in given.items()}
    said: Overrides = given
    for key, other in (
        (RULE_KINDS.key, PREDICTOR_KINDS.key),
        (PREDICTOR_KINDS.key, RULE_KINDS.key),
    ):
        value = given.get(key)
        if isinstance(value, Configuration):
            by_name = value.by_name()
            if key not in by_name:
                raise InvalidConfig(f"{value!r} is no {key}: give it as {other}=")
            said = {**by_name, **said, key: by_name[key]}
    return said


def _expanded(given: Overrides) -> Overrides:
    """The same with a rule or predictor of ours, given as an object, as its name and options; a
    name that is given beside it wins."""
    expanded = dict(given)
    for kinds in (RULE_KINDS, PREDICTOR_KINDS):
        value = given.get(kinds.key)
        for name, kind in kinds.by_name.items():
            if is_dataclass(value) and not isinstance(value, type) and type(value) is kind:
                expanded = {**asdict(value), **expanded, kinds.key: name}
    return expanded


def _choice(kinds: Kinds, merged: Overrides, given: Overrides) -> object:
    """The rule or predictor that a layer asks for, its name or an object; None where it doesn't."""
    names = {name for name in given if name in kinds.options}
    if kinds.key in given:
        return _named(kinds, given[kinds.key], names)
    if not names:
        return None
    if "preset" in given:
        current = _preset(given["preset"])[kinds.key]
        return None if names <= _options(kinds, current) else _by_options(kinds, names)
    current = merged.get(kinds.key)
    if current is None and "rule" not in merged:
        current = _preset(merged.get("preset", DEFAULT_PRESET))[kinds.key]
        if kinds is RULE_KINDS and names <= _options(kinds, current):
            return None
    return current if names <= _options(kinds, current) else _by_options(kinds, names)


def _named(kinds: Kinds, choice: object, names: set[str]) -> object:
    if not isinstance(choice, str):
        if not isinstance(choice, kinds.base):
            known = ", ".join(map(repr, kinds.by_name))
            raise InvalidConfig(f"{kinds.key} must be one of {known}, or a {kinds.key}: {choice!r}")
    elif choice not in kinds.by_name:
        known = ", ".join(map(repr, kinds.by_name))
        raise InvalidConfig(f"{kinds.key} must be one of {known}, got {choice!r}")
    for name in sorted(names - _options(kinds, choice)):
        raise InvalidConfig(f"{name} is no option of the {kinds.key} {choice!r}")
    return choice


def _by_options(kinds: Kinds, names: set[str]) -> str:
    """The one that has all these options; `home` where several have."""
    having = [name for name, kind in kinds.by_name.items() if names <= options_of(kind)]
    if kinds.home in having:
        return kinds.home
    if len(having) == 1:
        return having[0]
    listed = ", ".join(sorted(names))
    if having:
        raise InvalidConfig(f"{listed}: several have this; name one of {having} as {kinds.key}=")
    raise InvalidConfig(f"no {kinds.key} has all of the options {listed}")


def _preset(name: object) -> Overrides:
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidConfig(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {name!r}")
    return PRESETS[name]


def build(kinds: Kinds, merged: Overrides) -> object:
    """The rule or predictor that the merged layers ask for."""
    preset: Overrides = {}
    if "rule" not in merged:
        preset = _preset(merged.get("preset", DEFAULT_PRESET))
    choice = merged.get(kinds.key, preset.get(kinds.key, kinds.home))
    if not isinstance(choice, str):
        return choice
    options = _options(kinds, choice)
    own = {**preset, **merged} if choice == preset.get(kinds.key) else merged
    if choice == BlockLists.name:
        own = {**own, "block_lists": _parts(own)}
    return kinds.by_name[choice](**{n: v for n, v in own.items() if n in options})


def _parts(merged: Overrides) -> tuple[Part, ...]:
    """What each block list goes by: its own settings over DBCache and the shared predictor."""
    given, predictors = merged.get("block_lists"), {"predictor", *PREDICTOR_KINDS.options}
    shared = {name: value for name, value in merged.items() if name in predictors}
    lists = _frozen(given)
    if not isinstance(lists, tuple) or not all(map(_is_part, lists)):
        raise InvalidConfig(f"block_lists must be one dict of settings a block list, got {given!r}")
    return tuple(_part(one, {"rule": RULE_KINDS.home, **shared}) for one in lists)


def _is_part(one: object) -> bool:
    """A part, or settings as `frozen` leaves them within a sequence."""
    is_pairs = isinstance(one, tuple) and all(isinstance(pair, tuple) for pair in one)
    return isinstance(one, Part) or is_pairs


def _part(given: tuple[tuple[str, object], ...] | Part, lower: Overrides) -> Part:
    settings = dict(given.settings if isinstance(given, Part) else given)
    allowed = {"rule", "predictor", *RULE_KINDS.options, *PREDICTOR_KINDS.options}
    for name in settings:
        if name not in allowed:
            raise InvalidConfig(
                f"{name} can't be said of one block list: block_lists takes the options of rules "
                "and predictors"
            )
    merged = merge(lower, settings)
    rule, predictor = build(RULE_KINDS, merged), build(PREDICTOR_KINDS, merged)
    return Part(tuple(settings.items()), cast(Rule, rule), cast(Predictor, predictor))
