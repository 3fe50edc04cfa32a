"""Every file of `rules/` and `predictors/`, by name: a new one is found, and named nowhere else."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType, ModuleType
from typing import TypeVar

from dit_cachegraph.policy import predictors, rules
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Rule

T = TypeVar("T")


def options_of(kind: type) -> frozenset[str]:
    """The names of the options of a rule or predictor: its public fields."""
    return frozenset(f.name for f in fields(kind) if not f.name.startswith("_"))


def _named(base: type[T], folder: ModuleType) -> Mapping[str, type[T]]:
    found = {
        kind.name: kind  # type: ignore[attr-defined]
        for module in _modules(folder)
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, base)
        and "name" in vars(kind)
        and kind.__module__ == module.__name__
    }
    return MappingProxyType(dict(sorted(found.items())))


def _modules(folder: ModuleType) -> list[ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    return [importlib.import_module(f"{folder.__name__}.{name}") for name in names]


RULES = _named(Rule, rules)  # type: ignore[type-abstract]
PREDICTORS = _named(Predictor, predictors)  # type: ignore[type-abstract]
