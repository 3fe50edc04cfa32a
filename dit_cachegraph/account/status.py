"""Whether the last calls of a model went through the cache; if not, why not, and what helps.

What became of each call that came to us is noted at its end (`calls.py`). Of those that
didn't, Dynamo's own records tell, and are read when the report is asked for.
"""

import enum
from dataclasses import dataclass
from types import CodeType

from torch import nn

from dit_cachegraph.account.dynamo_records import is_left_out, limit_reached
from dit_cachegraph.call_log import Outcome, Unasked
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.models import ModelState
from dit_cachegraph.runtime.driver import CachedModel

RESET = "call `torch._dynamo.reset()`"


class Standing(enum.Enum):
    """How a model stands: which of these holds of its last call."""

    CACHED = "cached"
    WATCHED = "watched"
    REFUSED = "refused"
    TURNED_OFF = "turned off"
    UNASKED = "unasked"
    NOT_CALLED = "not called"


@dataclass(frozen=True, slots=True)
class Status:
    """`sentence` says how the model stands, with cause and remedy; `model` is its class."""

    model: str
    standing: Standing
    sentence: str

    @property
    def is_cached(self) -> bool:
        return self.standing is Standing.CACHED

    @property
    def needs_help(self) -> bool:
        """Whether something has to be done for it to be cached."""
        return self.standing not in (Standing.CACHED, Standing.WATCHED)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked about: a model, the code of its forward, whether what it is given as has a
    compiled call, and its notes; `asides` are those of one that is cached. `is_exported`: Dynamo
    has no part in its calls. `recompile_limit`: how often it may be compiled, where that isn't
    Dynamo's own setting."""

    name: str
    module: nn.Module | None
    codes: tuple[CodeType, ...]
    is_compiled: bool
    notes: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()
    is_exported: bool = False
    recompile_limit: int | None = None


def status_of(asked: Asked, state: ModelState) -> Status:
    """How the model stands now."""
    stopped = None if asked.is_exported else _why_not_asked_now(state)
    standing, sentence = stopped or _after_last_call(asked, state)
    return Status(asked.name, standing, sentence)


def _why_not_asked_now(state: ModelState) -> tuple[Standing, str] | None:
    """A stance under which no call comes to us, or none of what isn't compiled yet."""
    why = Unasked.now()
    stops_all = why.stance == "force_eager"
    stops_new = (why.stance == "eager_on_recompile" or why.is_disabled) and not state.graphs
    if not stops_all and not stops_new:
        return None
    return Standing.UNASKED, _told(why, "is in force")


def _after_last_call(asked: Asked, state: ModelState) -> tuple[Standing, str]:
    last = state.calls.last
    if last is Outcome.CACHED:
        if _is_turned_off(state):
            return Standing.TURNED_OFF, "turned off: `enabled=False` runs every block"
        return Standing.CACHED, "cached"
    if last is Outcome.WATCHED:
        return Standing.WATCHED, _WATCHED
    if last is Outcome.REFUSED:
        refusals = state.calls.refusals
        if asked.notes and all(refusal.has_no_blocks for refusal in refusals):
            return Standing.REFUSED, asked.notes[0]
        again = _AS_ONE_GRAPH if state.calls.is_tried_again else ""
        return Standing.REFUSED, f"{refusals[0]}{again}"
    if last is Outcome.UNASKED:
        return Standing.UNASKED, _why_unasked(asked, state)
    return _before_any_call(asked)


def _before_any_call(asked: Asked) -> tuple[Standing, str]:
    if asked.is_exported:
        return Standing.NOT_CALLED, "not called yet"
    reached = limit_reached(asked.codes, asked.module, asked.recompile_limit)
    if reached is not None or is_left_out(asked.codes):
        why = asked.notes[0] if asked.notes else reached or _LEFT_OUT
        return Standing.UNASKED, f"not cached: no call has come here; {why}"
    if asked.notes:
        return Standing.NOT_CALLED, f"no call has come here yet; {asked.notes[0]}"
    if not asked.is_compiled:
        return Standing.NOT_CALLED, (
            f"{_NOT_CALLED}; this {asked.name} has no compiled call itself (a copy by `deepcopy` "
            "or `pickle` loses it, and `disable_cache` takes it away): call "
            '`compile(backend="cachedit")` on it, or ask about what `torch.compile` returned'
        )
    return Standing.NOT_CALLED, f"{_NOT_CALLED} (calls under `force_eager` leave no trace)"


_WATCHED = (
    "not cached yet: the blocks were compiled one by one, and the first calls of each kind are "
    "watched before any is reused"
)
_AS_ONE_GRAPH = "; the next call is traced as one graph"
_NOT_CALLED = "not called yet: nothing is compiled before the first call"
_LEFT_OUT = (
    "Dynamo has looked at its code and leaves it out since, as it does after a graph break that it "
    "can't go on from, and with what is called while `torch._dynamo.config.disable` is set: "
    f"{RESET}"
)


def _why_unasked(asked: Asked, state: ModelState) -> str:
    why = state.calls.unasked
    assert why is not None
    if why.stance != "default" or why.is_disabled:
        return _told(why, "was in force")
    if state.calls.was_disabled:
        return _told(Unasked("default", True), "was set at an earlier call")
    reached = limit_reached(asked.codes, asked.module, asked.recompile_limit)
    num = state.calls.num_unasked
    said = "the last call ran eagerly" if num == 1 else f"the last {num} calls ran eagerly"
    if asked.notes or reached is not None:
        return f"not cached: {said}; {asked.notes[0] if asked.notes else reached}"
    return (
        f"not cached: {said}, and Dynamo didn't ask for them to be compiled: start with "
        f'`TORCH_LOGS="recompiles,graph_breaks"` to see why, and {RESET} to begin anew'
    )


def _told(why: Unasked, when: str) -> str:
    if why.stance != "default":
        return (
            f'not cached: the stance "{why.stance}" of `torch.compiler.set_stance` {when}, under '
            'which Dynamo runs calls eagerly: set it to "default"'
        )
    return (
        f"not cached: `torch._dynamo.config.disable` {when}; set it to False, and {RESET}, since "
        "Dynamo leaves out for good what it left out once"
    )


def _is_turned_off(state: ModelState) -> bool:
    """True where the settings of all that is cached have `enabled=False`."""
    graphs = [graph for graph in list(state.graphs.values()) if isinstance(graph, CachedModel)]
    return bool(graphs) and all(_is_disabled(graph, state) for graph in graphs)


def _is_disabled(graph: CachedModel, state: ModelState) -> bool:
    try:
        return not graph.plans.plan(state.overrides, ()).settings.common.enabled
    except InvalidConfig:
        return False
