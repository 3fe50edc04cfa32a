"""The registry of models: one `ModelState` a model, found by its weights and held weakly.

Dynamo compiles by code object, so two models of one class share one driver; what tells them apart
is their weights, which come with every call. The registry may be filled before the first call, by
`configure(module)`.
"""

import logging
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

from dit_cachegraph.call_log import CallLog
from dit_cachegraph.call_stack import modules_being_called
from dit_cachegraph.layers import Layers
from dit_cachegraph.observers import Observers
from dit_cachegraph.planning.step_plan import StepPlan
from dit_cachegraph.policy.recorded import Recorded
from dit_cachegraph.ranks.together import Meetings
from dit_cachegraph.retention.table import RequestTable
from dit_cachegraph.step_log import StepLog

MAX_RECORDINGS = 16
log = logging.getLogger("dit_cachegraph")


@dataclass(eq=False)
class ModelState:
    """All that is known of one model: settings given by `configure`, state, steps, graphs.

    `recordings` are those of the last dry runs, one an image; `graphs` holds what `summary` shows
    of each Dynamo graph, by the driver or refusal it came from, for as long as Dynamo keeps it;
    `options` are those that `torch.compile` was given for them; `num_graphs` counts all that it was
    ever compiled to; `last_plan` is what its last step went by, also within a `request` that brings
    settings of its own.
    """

    overrides: Layers = ()
    requests: RequestTable = field(default_factory=RequestTable)
    log: StepLog = field(default_factory=StepLog)
    recordings: deque[list[Recorded]] = field(default_factory=lambda: deque(maxlen=MAX_RECORDINGS))
    graphs: weakref.WeakValueDictionary[int, object] = field(
        default_factory=weakref.WeakValueDictionary
    )
    options: list[dict[str, object]] = field(default_factory=list)
    calls: CallLog = field(default_factory=CallLog)
    num_graphs: int = 0
    last_plan: StepPlan | None = None

    def add(self, graph: object) -> None:
        """A call of this model comes to a graph; each is counted once."""
        if id(graph) not in self.graphs:
            self.graphs[id(graph)] = graph
            self.num_graphs += 1

    def join(self, graph: object, options: Mapping[str, object]) -> None:
        """A graph of this model is called first. Logs which of its `options` don't hold, since
        `configure` gave others: those stay, also over `torch._dynamo.reset()`."""
        self.add(graph)
        if options in self.options:
            return
        self.options.append(dict(options))
        given = dict(pair for layer in self.overrides for pair in layer)
        names = [name for name in given if name in options and given[name] != options[name]]
        if names:
            told = ", ".join(f"{name}={given[name]!r} (not {options[name]!r})" for name in names)
            log.info("settings of `configure` hold over the `options` of `torch.compile`: %s", told)

    def absorb(self, other: "ModelState") -> None:
        """Take over what was seen of the same model by another of its graphs."""
        self.overrides = (*other.overrides, *self.overrides)
        other.requests.drop()  # Their next steps compute.
        self.log.absorb(other.log)
        if not self.requests.known.direction:
            self.requests.known = other.requests.known
        self.requests.num_evicted += other.requests.num_evicted
        self.requests.num_expired += other.requests.num_expired
        num_shared = sum(key in self.graphs for key in list(other.graphs))
        self.num_graphs += other.num_graphs - num_shared
        self.graphs.update(other.graphs)
        self.calls.absorb(other.calls)
        self.last_plan = self.last_plan or other.last_plan


class ModelRegistry:
    """Finds the state of a model by module or by weights. Both are held weakly: a model that dies
    takes its state with it. `observers` are told what all of them do; `meetings` are of ranks that
    share samples, whichever model they call."""

    def __init__(self) -> None:
        self.observers = Observers()
        self.meetings = Meetings()
        self._by_module: weakref.WeakKeyDictionary[nn.Module, ModelState] = (
            weakref.WeakKeyDictionary()
        )
        self._by_weight: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # Asked of what has other weights between its calls: `fully_shard` puts the whole ones in
        # the place of its parts for as long as a call runs.
        self._by_call: weakref.WeakKeyDictionary[nn.Module, ModelState] = (
            weakref.WeakKeyDictionary()
        )
        self._states: weakref.WeakSet[ModelState] = weakref.WeakSet()
        self._of_nobody = self._new()
        self._warned: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()

    def of_module(self, module: nn.Module) -> ModelState:
        """The state of `module`, made now if it has none yet. Several graphs of a model that breaks
        may have found no weight in common: from now on they share one state."""
        tensors = list(_tensors_of(module))
        own = self._by_module.get(module)
        known = [own, *(self._by_weight.get(tensor) for tensor in tensors)]
        states = list(dict.fromkeys(state for state in known if state is not None))
        if not states and module in self._by_call:
            states = [self._by_call[module]]
        # That of the fragment with the trunk has the requests under way.
        states.sort(key=lambda state: -len(state.requests))
        state = states[0] if states else self._new()
        for other in states[1:]:
            state.absorb(other)
        if len(states) > 1:
            for tensor in _plain(tensors):
                self._by_weight[tensor] = state
        self._by_module[module] = state
        return state

    def has_module(self, module: nn.Module) -> bool:
        is_known = module in self._by_module or module in self._by_call
        return is_known or any(p in self._by_weight for p in module.parameters())

    def of_weights(self, weights: Sequence[object], called: nn.Module | None = None) -> ModelState:
        """The state of the model that was called with these trunk weights; that of `called` where
        no module has them: `fully_shard` puts others in their place but while a block runs."""
        tensors = _plain(weights)
        state = (self.by_weight(tensors[0]) if tensors else None) or self._owner(tensors)
        if state is None and called is not None:
            state = self.of_module(called)
        if state is None:
            state = self._new()
            for module in modules_being_called():
                self._by_call.setdefault(module, state)
        for weight in tensors:
            self._by_weight[weight] = state
        return state

    def by_weight(self, weight: object) -> ModelState | None:
        """The state of the model that has this weight, if it was called before: the fast way."""
        return self._by_weight.get(weight)

    def of_any_weight(self, weights: Iterable[object]) -> ModelState:
        """The state of the model that has any of these weights: for graphs without a trunk. After
        its first call the first weight tells, and no other is looked at."""
        tensors = []
        for weight in weights:
            if isinstance(weight, Tensor):
                state = self._by_weight.get(weight)
                if state is not None:
                    return state
                tensors.append(weight)
        return self.of_weights(tensors)

    def is_first_warning(self, model: nn.Module | None, sentence: str) -> bool:
        """Whether nobody was told `sentence` of `model` before; None: of no model that is known."""
        if model is None:
            return True
        told = self._warned.setdefault(model, set())
        is_first = sentence not in told
        told.add(sentence)
        return is_first

    def _owner(self, weights: Sequence[Tensor]) -> ModelState | None:
        """The state of a registered module that has all of these weights: its first call, or a
        call after some of them were swapped for others. Without any, that of a module around, or
        that of all graphs without one."""
        if not weights:
            around = modules_being_called()
            known = (module for module in around if self.has_module(module))
            return next(map(self.of_module, known), None if around else self._of_nobody)
        wanted = {id(weight) for weight in weights}
        for module, state in list(self._by_module.items()):
            if wanted <= {id(tensor) for tensor in _tensors_of(module)}:
                return state
        return None

    def states(self) -> list[ModelState]:
        """Those of all models that live."""
        return list(self._states)

    def _new(self) -> ModelState:
        state = ModelState()
        self._states.add(state)
        return state

    def states_of(self, modules: Iterable[nn.Module]) -> list[ModelState]:
        return [self.of_module(module) for module in modules]


def _plain(weights: Iterable[object]) -> list[Tensor]:
    """The tensors among some weights, without those that hold others, if there are more: torch
    swaps such a one for another (`Module.to`) only where nobody holds it weakly."""
    tensors = [w for w in weights if isinstance(w, Tensor)]
    return [w for w in tensors if not is_traceable_wrapper_subclass(w)] or tensors


def _tensors_of(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


REGISTRY = ModelRegistry()
