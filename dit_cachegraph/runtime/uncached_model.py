"""A graph that runs compiled and uncached: it only tells the report why."""

from collections.abc import Callable, Sequence

from dit_cachegraph.plan import Uncacheable
from dit_cachegraph.runtime.models import REGISTRY


class UncachedModel:
    """The compiled graph, with its refusal for the report of whichever model calls it."""

    def __init__(
        self,
        function: Callable[..., object],
        refusal: Uncacheable,
        weights: Sequence[int],
    ) -> None:
        self.refusal = refusal
        self._function = function
        self._weights = tuple(weights)

    def __call__(self, *args: object) -> object:
        model = REGISTRY.of_any_weight([args[i] for i in self._weights])
        model.graphs.setdefault(id(self), self)
        return self._function(*args)
