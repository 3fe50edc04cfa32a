"""The decisions of a run as a fixed schedule: the same whatever the batch or the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass

from dit_cachegraph.config import Settings
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import PREDICTOR_KINDS
from dit_cachegraph.policy.catalog import options_of
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Rule
from dit_cachegraph.policy.rules.block_lists import Part
from dit_cachegraph.step_log import StepReport

PREDICTOR_NAMES = frozenset({"predictor", *PREDICTOR_KINDS.options})


def settings_as_config(settings: Settings) -> dict[str, object]:
    """Rule and predictor by name, with all their options: JSON, and what `configure` takes."""
    return {**_named("rule", settings.rule), **_named("predictor", settings.predictor)}


def frozen_config(
    settings: Mapping[str, object], regions: Sequence[tuple[int, int]], steps: Sequence[StepReport]
) -> dict[str, object]:
    """A fixed schedule of the last image of each branch: a step computes if it did on any.

    Raises:
        InvalidConfig: there is no whole image, each step decided on several regions or none, or its
            steps skipped different ones.
    """
    if not regions:
        raise InvalidConfig(
            "the settings of the last image let no block be skipped (Fn_compute_blocks, "
            "Bn_compute_blocks and non_prune_block_ids leave none), so there is nothing to freeze"
        )
    if len(regions) != 1:
        raise InvalidConfig(
            f"{len(regions)} regions decide for themselves here: one mask can't say that"
        )
    images = last_images(steps)
    if not images:
        raise InvalidConfig("no image has begun yet: draw one before its decisions are frozen")
    skipped = {step.skipped for image in images for step in image if step.hit}
    if len(skipped) > 1:
        told = " and ".join(sorted(str(list(each)) for each in skipped))
        raise InvalidConfig(
            f"the steps of the last image skipped different blocks, {told}, as where guidance "
            "leaves layers out or settings change: one region can't say that"
        )
    region = next(iter(skipped))[0] if skipped else regions[0]
    length = max(map(len, images))
    computes = [any(i >= len(image) or not image[i].hit for image in images) for i in range(length)]
    return {
        "rule": "fixed",
        "compute_mask": [int(compute) for compute in computes],
        "fixed_region": list(region),
        **{name: value for name, value in settings.items() if name in PREDICTOR_NAMES},
    }


def _named(key: str, value: Rule | Predictor) -> dict[str, object]:
    if not is_dataclass(value):
        return {key: value.name}
    known = options_of(type(value))
    options = {name: option for name, option in asdict(value).items() if name in known}
    return {key: value.name, **{name: _jsonable(option) for name, option in options.items()}}


def _jsonable(option: object) -> object:
    if isinstance(option, Part):
        return {name: _jsonable(value) for name, value in option.settings}
    return [_jsonable(one) for one in option] if isinstance(option, tuple) else option


def last_images(steps: Sequence[StepReport]) -> list[list[StepReport]]:
    """The steps of the last image, and of those that were under way beside it: on its other
    guidance branches."""
    begun: dict[str, int] = {}
    images: dict[str, list[StepReport]] = {}
    ended: dict[str, int] = {}
    for place, step in enumerate(steps):
        if step.step == 0:
            begun[step.request], images[step.request] = place, []
        if step.request in images:
            images[step.request].append(step)
            ended[step.request] = place
    if not images:
        return []
    first = begun[max(ended, key=lambda request: ended[request])]
    return [image for request, image in images.items() if ended[request] >= first]
