"""A graph that runs compiled and uncached: it only tells the report why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dit_cachegraph.calls import note_refused
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.plan import FragmentRoles, Uncacheable
from dit_cachegraph.requests.handoff import hand_on


@dataclass(frozen=True, eq=False)
class UncachedModel:
    """The compiled graph, with its refusal for the report of whichever model calls it. `roles` are
    what it notes for a later fragment of the call, of which `model` is the outermost module."""

    function: Callable[..., object]
    refusal: Uncacheable
    weights: Sequence[int]
    roles: FragmentRoles | None
    model: type[nn.Module] | None

    def __call__(self, *args: object) -> object:
        model = REGISTRY.of_any_weight(args[i] for i in self.weights)
        model.add(self)
        note_refused(model, self.refusal)
        if self.roles is not None:
            hand_on(self.model, self.roles, args)
        return self.function(*args)
