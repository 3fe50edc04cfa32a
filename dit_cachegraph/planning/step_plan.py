"""By which settings a step goes, and the regions that they ask for: worked out once for each
combination of settings that is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit_cachegraph.config import Settings, resolve
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import Layers
from dit_cachegraph.plan import ArgumentRoles, Trunk
from dit_cachegraph.planning.region import Region, check_spans, plan_region
from dit_cachegraph.planning.stages import Stage, stages_of
from dit_cachegraph.policy.rule import Need, Rule, Span

MAX_PLANS_KEPT = 256
NO_OUTPUT = (
    "this rule compares the model's output, which is not seen where blocks are compiled one by "
    "one: compile the whole model, or choose another rule"
)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Settings, and the regions of the trunk under them. `spans[i]` is what `regions[i]` is of;
    `rule` is that of the settings, on this trunk, and `needs` what it needs to see; `stages` are
    what the driver walks."""

    settings: Settings
    rule: Rule
    needs: frozenset[Need]
    spans: tuple[Span, ...]
    regions: tuple[Region, ...]
    stages: tuple[Stage, ...]

    @property
    def is_counted(self) -> bool:
        """True if within `request(key)` the number of calls says all that the rule needs."""
        num_steps = self.settings.common.num_inference_steps
        has_clock = Need.CLOCK not in self.needs or num_steps is not None
        return has_clock and Need.NOISE not in self.needs and Need.DIFF not in self.needs

    def why_unlike(self, other: "StepPlan") -> str | None:
        """Why what is held under another plan is of no use under this one; None if it is."""
        if self is other:
            return None
        if self.spans != other.spans:
            return "region changed"
        pairs = zip(self.regions, other.regions, strict=True)
        is_same = all(own.predictor == theirs.predictor for own, theirs in pairs)
        return None if is_same else "predictor changed"


def make_plan(settings: Settings, trunk: Trunk, roles: ArgumentRoles) -> StepPlan:
    """The plan of a step on a trunk.

    Raises:
        InvalidConfig: the trunk can't have these regions.
    """
    spans = settings.rule.spans(trunk.list_sizes)
    check_spans(trunk, spans)
    used = tuple(span for span in spans if span.start < span.stop)
    _check_dry_run(settings, used)
    if Need.OUTPUT in settings.rule.needs and not trunk.results:
        raise InvalidConfig(NO_OUTPUT)
    rule = settings.rule.on_trunk(trunk.list_sizes)
    predictors = [rule.predictor_of(i) or settings.predictor for i in range(len(used))]
    # Of a probe that nobody reads nothing is kept.
    compares = Need.DIFF in rule.needs
    compared = used if compares else [span._replace(probe=None) for span in used]
    pairs = zip(compared, predictors, strict=True)
    regions = tuple([plan_region(trunk, roles, span, predictor) for span, predictor in pairs])
    stages = stages_of(regions, trunk.num_blocks)
    return StepPlan(settings, rule, rule.needs, used, regions, stages)


class PlanTable:
    """The plans of one trunk. `options` are those of `torch.compile`, under all others."""

    def __init__(self, trunk: Trunk, roles: ArgumentRoles, options: Mapping[str, object]) -> None:
        self.options = dict(options)
        self._trunk, self._roles = trunk, roles
        self._plans: dict[object, StepPlan] = {}

    def plan(self, model: Layers, request: Layers) -> StepPlan:
        """The plan under the settings of a model and of a request, in this order.

        Raises:
            InvalidConfig: the trunk can't have these regions.
        """
        key = (model, request)
        found = self._plans.get(key)
        if found is None:
            settings = resolve(self.options, *map(dict, model), *map(dict, request))
            found = make_plan(settings, self._trunk, self._roles)
            if len(self._plans) > MAX_PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = found
        return found


def _check_dry_run(settings: Settings, spans: Sequence[Span]) -> None:
    thresholds, rule = settings.common.dry_run, settings.rule
    if thresholds is not None and len(spans) != 1:
        raise InvalidConfig(
            f"dry_run needs a rule with one region, and {rule.name!r} has {len(spans)}"
        )
    if thresholds and any(s.probe and s.probe.important_condition_threshold > 0 for s in spans):
        raise InvalidConfig(
            "dry_run keeps a sample of what is compared, which doesn't show whole tokens: leave "
            "important_condition_threshold out of it"
        )
    if thresholds and rule.threshold_option is None:
        raise InvalidConfig(f"the rule {rule.name!r} has no threshold to try")
