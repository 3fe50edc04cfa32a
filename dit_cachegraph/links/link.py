"""What Dynamo compiled of one block, and where in the model a call of it is.

Blocks of one class share one link, so the weights that a call brings tell which block it is.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dit_cachegraph.module_lists import outermost_lists
from dit_cachegraph.plan import LinkGraph
from dit_cachegraph.segments.slots import gatherer


class Link:
    """The compiled graph of one block. `settings` are the options of its `torch.compile`;
    `weights_of` are those among the arguments of a call."""

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        graph: LinkGraph,
        settings: Mapping[str, object],
        compile_seconds: float,
    ) -> None:
        self.function, self.graph, self.settings = function, graph, settings
        self.compile_seconds = compile_seconds
        self.weights_of = gatherer(graph.weights)


class Place(NamedTuple):
    """A block by the path of its list and its index there."""

    container: str
    position: int

    def __str__(self) -> str:
        return f"{self.container}.{self.position}"


class Owned(NamedTuple):
    """A weight by the module that has it. Called, it returns the weight, None if it is gone."""

    module: "weakref.ref[nn.Module]"
    name: str

    def __call__(self) -> object:
        module = self.module()
        return None if module is None else getattr(module, self.name, None)


WeightRef = weakref.ref[object] | Owned
WeightRefs = tuple[WeightRef, ...]


class Places:
    """Where the blocks of one model are, by their weights. A weight that two blocks share tells
    nothing. Plain weights are held weakly, and one that holds others by the module that has it: to
    move such a one torch swaps it with another, which it does with nothing that is held weakly."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._known: dict[int, tuple[WeightRef, Place | None]] = {}

    def of(self, link: Link, args: Sequence[object]) -> Place | None:
        """Which block this call of a link is of; None if its weights don't tell."""
        weights = link.weights_of(args)
        if any(self._found(weight) is None for weight in weights):
            self._find()
        found = filter(None, map(self._found, weights))
        return next((place for _, place in found if place is not None), None)

    def ref_of(self, weight: object) -> WeightRef:
        """What returns a weight for as long as it is there, and None then."""
        found = self._found(weight)
        return weakref.ref(weight) if found is None else found[0]

    def _found(self, weight: object) -> tuple[WeightRef, Place | None] | None:
        found = self._known.get(id(weight))
        return found if found is not None and found[0]() is weight else None

    def _find(self) -> None:
        model = self._model()
        assert model is not None, "it is being called"
        self._known.clear()
        for name, blocks in outermost_lists(model).items():
            for index, block in enumerate(blocks):
                for weight, ref in _weights(block):
                    self._add(weight, ref, Place(name, index))

    def _add(self, weight: Tensor, ref: WeightRef, place: Place) -> None:
        found = self._found(weight)
        is_shared = found is not None and found[1] != place
        self._known[id(weight)] = ref, None if is_shared else place


def _weights(block: nn.Module) -> Iterator[tuple[Tensor, WeightRef]]:
    for module in block.modules():
        own = *module.named_parameters(recurse=False), *module.named_buffers(recurse=False)
        for name, weight in own:
            if is_traceable_wrapper_subclass(weight):
                yield weight, Owned(weakref.ref(module), name)
            else:
                yield weight, weakref.ref(weight)
