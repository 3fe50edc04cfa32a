"""What the state explorer asks for: kinds of requests, and the strategy that draws them."""

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
        """A named request by a static mask, or by error control with a number of steps: then
        nothing tells its next image, but a new key."""
        is_static = self.settings.get("steps_computation_policy") == "static"
        is_paced = self.settings.get("rule") == "error_control" and self.tells_steps != "no"
        return self.is_named and (is_static or is_paced)

    @property
    def has_odd_graph(self) -> bool:
        return self.changes_graph and self.kind == "plain"

    def __repr__(self) -> str:
        plain = Ask()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        odd = {name: v for name, v in values.items() if v != getattr(plain, name)}
        return f"Ask({', '.join(f'{name}={value!r}' for name, value in odd.items())})"


def asks(settings: st.SearchStrategy[dict[str, object]]) -> st.SearchStrategy[Ask]:
    """Requests with some of these settings, where they are named."""
    return st.builds(
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
        settings=settings,
    )
