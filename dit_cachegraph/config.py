"""All settings: what `options=`, `configure` and `request` take, checked where they are given.

Settings come in layers: `options` of `torch.compile`, then `configure`, then `request`; a later
layer wins, name by name. None of them is in the compiled code, so none of them recompiles.

    preset=      a rule and a predictor with their options; "balanced" if nothing else is said
    rule=        when to reuse, by name or as an object
    predictor=   what to replay, by name or as an object
    an option    of the preset's own rule or predictor refines the preset; of another one, selects
                 that, with its own defaults and nothing of the preset
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import cast

import torch.distributed as dist

from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.layers import PREDICTOR_KINDS, RULE_KINDS, Overrides, build, frozen, merge
from dit_cachegraph.policy.checks import check_bool, check_int, check_number, check_sequence
from dit_cachegraph.policy.predictor import Predictor
from dit_cachegraph.policy.rule import Need, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """What every rule shares."""

    enabled: bool = True
    """False runs every block and keeps nothing."""

    num_inference_steps: int | None = None
    """Calls that one image makes of the transformer on each guidance branch, where known: its state
    is freed after the last of them. Else that is learned from the images before."""

    max_state_bytes: int | None = None
    """A bound on what is kept between the steps of all requests of a model. Over it, the least
    recently used requests lose their state, and their next steps compute."""

    max_idle_seconds: float | None = 600.0
    """How long what is kept of a request waits for its next call; None: for ever. After that it is
    taken for given up: it loses its state when any step of the model begins, and would compute."""

    observe_error: bool = False
    """At each computed step, measure what a reuse would have missed, and report it."""

    max_observed_error: float | None = None
    """End the reuse of an image once such an error is larger than this share of its streams."""

    dry_run: tuple[float, ...] | None = None
    """Thresholds to try: every step computes, and the report says what each would have reused,
    saved and lost."""

    def __post_init__(self) -> None:
        check_bool("enabled", self.enabled)
        for threshold in check_sequence("dry_run", self.dry_run) or ():
            check_number("dry_run", threshold)
        check_int("num_inference_steps", self.num_inference_steps, at_least=1, none_is_ok=True)
        check_int("max_state_bytes", self.max_state_bytes, at_least=0, none_is_ok=True)
        check_number("max_idle_seconds", self.max_idle_seconds, none_is_ok=True)
        check_bool("observe_error", self.observe_error)
        check_number("max_observed_error", self.max_observed_error, none_is_ok=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one step goes by: the guard, when to reuse, and what to replay."""

    common: CommonSettings
    rule: Rule
    predictor: Predictor
    observes_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """What is decided when a model is compiled, and can't be changed after."""

    inner_backend: str = "inductor"
    """Who compiles the segments: "inductor", "eager", "aot_eager", or any registered backend."""

    mode: str | None = None
    """A mode of `torch.compile`, for Inductor. CUDA graphs that it turns on are left out."""

    inductor: Mapping[str, object] = field(default_factory=dict)
    """Inductor's own options, such as {"max_autotune": True}."""

    frozen_weights: bool = False
    """The promise that the model stays as it is once it was called, so that no call has to look:
    weights, adapters and their scales, attributes of modules, `train()` and hooks. Dynamo checks
    none of them, and what was kept is reused whatever became of them; what is not reused may run
    with the old or the new ones. After a change call `torch._dynamo.reset()` and `reset`. Inputs,
    settings and grad mode are checked as ever, and so is which model is called. Where blocks are
    compiled one by one, it does nothing."""

    cuda_graphs: bool = False
    """Replay runs of segments as CUDA graphs, in place of calling them, so that the host has little
    to do. Each run takes a capture at its first call of a size, and there is a pool of memory
    beside what is kept. For a model on a GPU whose weights stay where they are."""

    process_group: object = None
    """The ranks that share each sample, and so have to decide as one: a group of torch.distributed,
    or its name. None: those that the blocks wait for, where it is seen which these are."""

    @property
    def group_name(self) -> str | None:
        """That of `process_group`."""
        group = self.process_group
        return group if group is None or isinstance(group, str) else _name_of(group)

    def __post_init__(self) -> None:
        if not isinstance(self.inner_backend, str):
            raise InvalidConfig(f"inner_backend must be a name, got {self.inner_backend!r}")
        if self.mode is not None and not isinstance(self.mode, str):
            raise InvalidConfig(f"mode must be a name, got {self.mode!r}")
        if not isinstance(self.inductor, Mapping):
            raise InvalidConfig(f"inductor must be a dict of options, got {self.inductor!r}")
        check_bool("frozen_weights", self.frozen_weights)
        check_bool("cuda_graphs", self.cuda_graphs)
        self._check_group()

    def _check_group(self) -> None:
        name = self.group_name
        if name is None:
            return
        try:
            dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
        except RuntimeError:
            raise InvalidConfig(
                f"process_group: torch.distributed knows no group {name!r}"
            ) from None


def _name_of(group: object) -> str:
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise InvalidConfig(
            "process_group must be a group of torch.distributed (of a mesh: `mesh.get_group(dim)`) "
            f"or its name, got {group!r}"
        )
    return group.group_name


_COMMON = frozenset(f.name for f in fields(CommonSettings))
_COMPILE = frozenset(f.name for f in fields(CompileOptions))


def resolve(*layers: Overrides) -> Settings:
    """The settings that the layers add up to.

    Raises:
        InvalidConfig: an unknown name (with the nearest known one), a bad value, or options of two
            rules at once.
    """
    merged: dict[str, object] = {}
    for layer in layers:
        _check_names(layer, known_settings())
        merged = merge(merged, layer)
    rule = cast(Rule, build(RULE_KINDS, merged))
    predictor = cast(Predictor, build(PREDICTOR_KINDS, merged))
    common = CommonSettings(**{n: v for n, v in merged.items() if n in _COMMON})  # type: ignore[arg-type]
    observes = (
        common.observe_error or common.max_observed_error is not None or Need.ERROR in rule.needs
    )
    return Settings(common, rule, predictor, observes)


def split_options(options: Overrides) -> tuple[CompileOptions, dict[str, object]]:
    """`torch.compile`'s options: what the compilation needs, and the settings of the cache."""
    known = known_settings() | _COMPILE
    for name in options:
        if name not in known and _is_inductors(name):
            raise InvalidConfig(
                f"{name} is an option of Inductor: give it as inductor={{{name!r}: ...}}, in "
                "`options`"
            )
    _check_names(options, known)
    compile_options = {name: value for name, value in options.items() if name in _COMPILE}
    settings = frozen({name: value for name, value in options.items() if name not in _COMPILE})
    resolve(settings)
    return CompileOptions(**compile_options), settings  # type: ignore[arg-type]


def _is_inductors(name: str) -> bool:
    # Importing Inductor takes seconds, which only an unknown name costs.
    from torch._inductor import config  # noqa: PLC0415

    return str(name).replace("-", "_") in config.get_config_copy()


def known_settings() -> frozenset[str]:
    """The names that `configure` takes."""
    chosen = frozenset({"preset", "rule", "predictor"})
    return _COMMON | chosen | RULE_KINDS.options | PREDICTOR_KINDS.options


INSTEAD = MappingProxyType(
    {
        "cache_type": "rule='dbcache' or rule='dbprune' says it, and enabled=False for no cache",
        "cache_config": "a DBCacheConfig or DBPruneConfig is given as rule=",
        "calibrator_config": "a TaylorSeerCalibratorConfig or another one is given as predictor=",
        "params_modifiers": "block_lists= takes a dict of settings for each block list",
        "enable_taylorseer": "predictor='taylorseer' says it",
        "enable_dmd": "predictor='dmd' says it",
        "enable_foca": "predictor='foca' says it",
        "enable_calibrator": "predictor= says it, by name, or 'replay' for none",
    }
)


def _check_names(given: Overrides, known: frozenset[str]) -> None:
    for name in given:
        if name in known:
            continue
        if name in INSTEAD:
            raise InvalidConfig(f"{name} is of cache-dit's calls: here {INSTEAD[name]}")
        if name in _COMPILE:
            raise InvalidConfig(
                f"{name} is decided when the model is compiled: give it to torch.compile, in "
                "`options`"
            )
        raise unknown_option(name, known)


def unknown_option(name: str, known: Collection[str]) -> InvalidConfig:
    """What to raise for a name that is none of the known ones: it says the nearest of them."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(sorted(known))}"
    return InvalidConfig(f"unknown option {name}: {hint}")
