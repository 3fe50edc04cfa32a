"""What the state explorer asks for: kinds of requests and their settings, and the strategies that
draw them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from hypothesis import strategies as st

NUM_WORDS = 4
AS_IT_IS, SLICED, REBUILT = "as it is", "sliced", "rebuilt"


@dataclass(frozen=True)
class Kind:
    """Shapes and types of a request: each kind is one Dynamo graph, or some few."""

    num_tokens: int = 24
    batch: int = 1
    timestep: str = "float"
    num_negative_words: int = NUM_WORDS


KINDS = {
    "plain": Kind(num_negative_words=6),
    "integer timesteps": Kind(timestep="integer"),
    "large": Kind(num_tokens=32),
    "timesteps per token": Kind(num_tokens=32, timestep="per token"),
    "guidance in one batch": Kind(batch=2),
}


@dataclass(frozen=True)
class Ask:
    """What is asked for. Prints what is out of the ordinary."""

    kind: str = "plain"
    passes: tuple[str, ...] = ("cond",)
    guidance_ends: bool = False
    num_steps: int = 6
    pace: str = "even"
    prompt: str = "own"
    prompt_comes: str = AS_IT_IS
    ids: str = "shared"
    has_own_guidance: bool = False
    negative: str = "own"
    latents: str = "new"
    experts: str = "first"
    changes_graph: bool = False
    is_named: bool = False
    tells_steps: str = "no"
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def reads_no_clock(self) -> bool:
        """A named request with a static mask: then nothing tells its next image, but a new key."""
        return self.is_named and self.settings.get("steps_computation_policy") == "static"

    @property
    def has_odd_graph(self) -> bool:
        return self.changes_graph and self.kind == "plain"

    def __repr__(self) -> str:
        plain = Ask()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        odd = {name: v for name, v in values.items() if v != getattr(plain, name)}
        return f"Ask({', '.join(f'{name}={value!r}' for name, value in odd.items())})"


SETTING_VALUES = {
    "residual_diff_threshold": st.sampled_from([0.15, 0.3, 0.5, 1.0, 0.0]),
    "max_warmup_steps": st.integers(0, 4),
    "Fn_compute_blocks": st.integers(1, 3),
    "Bn_compute_blocks": st.integers(0, 1),
    "warmup_interval": st.integers(1, 2),
    "max_cached_steps": st.integers(-1, 4),
    "max_continuous_cached_steps": st.integers(-1, 3),
    "max_accumulated_residual_diff_threshold": st.sampled_from([None, 0.4, 0.8]),
    "steps_computation_mask": st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=9),
    "steps_computation_policy": st.sampled_from(["dynamic", "static"]),
    "batch_rule": st.sampled_from(["max", "mean"]),
    "max_state_bytes": st.sampled_from([None, 7000]),
    "enabled": st.booleans(),
}
# A few at a time, so that most are what they are by default.
SETTINGS = st.lists(st.sampled_from(list(SETTING_VALUES)), unique=True, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: SETTING_VALUES[name] for name in names})
)
ASKS = st.builds(
    Ask,
    kind=st.sampled_from(list(KINDS)),
    passes=st.sampled_from(
        [("cond",), ("cond", "uncond"), ("uncond", "cond"), ("cond", "uncond", "third")]
    ),
    guidance_ends=st.booleans(),
    num_steps=st.integers(6, 10),
    pace=st.sampled_from(["even", "uneven", "Heun"]),
    prompt=st.sampled_from(["own", "same object", "equal"]),
    prompt_comes=st.sampled_from([AS_IT_IS, SLICED, REBUILT]),
    ids=st.sampled_from(["shared", "own"]),
    has_own_guidance=st.booleans(),
    negative=st.sampled_from(["own", "shared", "equal"]),
    latents=st.sampled_from(["new", "in place", "copied"]),
    experts=st.sampled_from(["first", "second", "switch"]),
    changes_graph=st.booleans(),
    is_named=st.booleans(),
    tells_steps=st.sampled_from(["no", "right", "too few"]),
    settings=SETTINGS,
)
