"""Families of rules that the explorer asks for: what a schedule draws its settings from, and who
says what an image does alone by them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from hypothesis import strategies as st

from support.explorer.lone_dbcache import DBCacheRules, LoneDBCache
from support.explorer.lone_error_control import ErrorControlRules, LoneErrorControl
from support.explorer.lone_image import LoneImage, Rules

Settings = dict[str, object]


@dataclass(frozen=True)
class Family:
    """`always` is set on every model from the beginning; `settings` draws what `configure` and
    named requests bring, and `pinned` is what settles, where a named request begins, whether its
    clock is read. `lone` begins one pass of an image, given those that it belongs to."""

    name: str
    always: Settings
    pinned: Settings
    settings: st.SearchStrategy[Settings]
    rules: type[Rules]
    lone: Callable[[list[LoneImage]], LoneImage]
    passes_are_coupled: bool = False

    def rules_of(self, settings: Mapping[str, object]) -> Rules:
        """What the settings of a step say to its oracle."""
        names = {f.name for f in fields(self.rules)}
        return self.rules(**{name: value for name, value in settings.items() if name in names})

    def __repr__(self) -> str:
        return self.name


def _some_of(values: Mapping[str, st.SearchStrategy[object]]) -> st.SearchStrategy[Settings]:
    """A few at a time, so that most are what they are by default."""
    return st.lists(st.sampled_from(list(values)), unique=True, max_size=3).flatmap(
        lambda names: st.fixed_dictionaries({name: values[name] for name in names})
    )


MASKS = st.lists(st.integers(0, 1), min_size=1, max_size=9)
DBCACHE_VALUES = {
    "residual_diff_threshold": st.sampled_from([0.15, 0.3, 0.5, 1.0, 0.0]),
    "max_warmup_steps": st.integers(0, 4),
    "Fn_compute_blocks": st.integers(1, 3),
    "Bn_compute_blocks": st.integers(0, 1),
    "warmup_interval": st.integers(1, 2),
    "max_cached_steps": st.integers(-1, 4),
    "max_continuous_cached_steps": st.integers(-1, 3),
    "max_accumulated_residual_diff_threshold": st.sampled_from([None, 0.4, 0.8]),
    "steps_computation_mask": st.none() | MASKS,
    "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
    "batch_rule": st.sampled_from(["max", "mean"]),
    "max_state_bytes": st.sampled_from([None, 7000]),
    "enabled": st.booleans(),
}
# The limits are drawn here too, and mean nothing.
STATIC_VALUES = {
    **{n: v for n, v in DBCACHE_VALUES.items() if n != "steps_computation_policy"},
    "steps_computation_mask": MASKS,
}
ERROR_CONTROL_VALUES = {
    "error_tolerance": st.sampled_from([0.2, 0.4, 0.7, 1.0, 0.0]),
    "max_gap": st.integers(1, 6),
    "min_error_steps": st.integers(1, 4),
    "max_state_bytes": st.sampled_from([None, None, None, 3000]),
    "enabled": st.booleans(),
}
EVERY_THIRD = (1, 0, 0, 1, 0, 0, 1, 0, 0, 1)
STATIC_RULES = DBCacheRules(steps_computation_policy="static", steps_computation_mask=EVERY_THIRD)

DBCACHE = Family(
    "DBCache",
    always=asdict(DBCacheRules()),
    pinned={"steps_computation_policy": "dynamic"},
    settings=_some_of(DBCACHE_VALUES),
    rules=DBCacheRules,
    lone=LoneDBCache,
)
STATIC_MASK = Family(
    "static mask",
    always=asdict(STATIC_RULES),
    pinned={"steps_computation_policy": "static"},
    settings=_some_of(STATIC_VALUES),
    rules=DBCacheRules,
    lone=LoneDBCache,
)
ERROR_CONTROL = Family(
    "error control",
    always={"rule": "error_control", "predictor": "replay", **asdict(ErrorControlRules())},
    pinned={"rule": "error_control"},
    settings=_some_of(ERROR_CONTROL_VALUES),
    rules=ErrorControlRules,
    lone=LoneErrorControl,
    passes_are_coupled=True,
)
FAMILIES = (DBCACHE, STATIC_MASK, ERROR_CONTROL)
