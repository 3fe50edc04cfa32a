"""By which settings a step goes, and the regions that they ask for: worked out once for each
combination of settings that is met."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from dit_cachegraph.config import Settings, resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import Layers
from dit_cachegraph.plan import CompiledTrunk, Region
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Rule, Span
from dit_cachegraph.runtime.region import plan_regions
from dit_cachegraph.runtime.stages import Stage, stages_of

MAX_PLANS_KEPT = 256
log = logging.getLogger("dit_cachegraph")


class StepPlan(NamedTuple):
    """Settings, and the regions of the trunk under them. `spans[i]` is what `regions[i]` is of, and
    `predictors[i]` what it is reused by; `rule` is that of the settings, on this trunk; `stages`
    are what the driver walks."""

    settings: Settings
    rule: Rule
    predictors: tuple[Predictor, ...]
    spans: tuple[Span, ...]
    regions: tuple[Region, ...]
    stages: tuple[Stage, ...]


def tell_overridden(options: Mapping[str, object], model: Layers) -> None:
    """Log which of the `options` of `torch.compile` don't hold, since `configure` gave others for
    the model: those stay until they are changed, also over `torch._dynamo.reset()`."""
    given = dict(pair for layer in model for pair in layer)
    names = [name for name in given if name in options and given[name] != options[name]]
    if names:
        told = ", ".join(f"{name}={given[name]!r} (not {options[name]!r})" for name in names)
        log.info("settings of `configure` hold over the `options` of `torch.compile`: %s", told)


class PlanTable:
    """The plans of one trunk. `options` are those of `torch.compile`, under all others."""

    def __init__(self, compiled: CompiledTrunk, options: Mapping[str, object]) -> None:
        self.options = dict(options)
        self._compiled = compiled
        self._plans: dict[object, StepPlan] = {}

    def plan(self, model: Layers, request: Layers) -> StepPlan:
        """The plan under the settings of a model and of a request, in this order.

        Raises:
            InvalidConfig: the trunk can't have these regions.
        """
        key = (model, request)
        found = self._plans.get(key)
        if found is None:
            found = self._make(model, request)
            if len(self._plans) > MAX_PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = found
        return found

    def _make(self, model: Layers, request: Layers) -> StepPlan:
        settings = resolve(self.options, *map(dict, model), *map(dict, request))
        trunk, roles = self._compiled.trunk, self._compiled.roles
        spans = settings.rule.spans(trunk.list_sizes)
        used = tuple(span for span in spans if span.start < span.stop)
        _check_dry_run(settings, len(used))
        rule = settings.rule.on_trunk(trunk.list_sizes)
        predictors = [rule.predictor_of(i) or settings.predictor for i in range(len(used))]
        regions = plan_regions(trunk, roles, spans)
        stages = stages_of(regions, trunk.num_blocks)
        return StepPlan(settings, rule, tuple(predictors), used, regions, stages)


def _check_dry_run(settings: Settings, num_regions: int) -> None:
    thresholds, rule = settings.common.dry_run, settings.rule
    if thresholds is not None and num_regions != 1:
        raise InvalidConfig(
            f"dry_run needs a rule with one region, and {rule.name!r} has {num_regions}"
        )
    if thresholds and rule.threshold_option is None:
        raise InvalidConfig(f"the rule {rule.name!r} has no threshold to try")
