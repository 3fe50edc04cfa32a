"""What Dynamo compiled of one block, and where in the model a call of it is.

Blocks of one class share one link, so the weights that a call brings tell which block it is.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

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


class Places:
    """Where the blocks of one model are, by their weights, which are held weakly. A weight that two
    blocks share tells nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._of_weight: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of(self, link: Link, args: Sequence[object]) -> Place | None:
        """Which block this call of a link is of; None if its weights don't tell."""
        weights = link.weights_of(args)
        if any(weight not in self._of_weight for weight in weights):
            self._find()
        found = (self._of_weight.get(weight) for weight in weights)
        return next((place for place in found if place is not None), None)

    def _find(self) -> None:
        model = self._model()
        assert model is not None, "it is being called"
        self._of_weight.clear()
        for name, blocks in outermost_lists(model).items():
            for index, block in enumerate(blocks):
                for weight in (*block.parameters(), *block.buffers()):
                    self._add(weight, Place(name, index))

    def _add(self, weight: Tensor, place: Place) -> None:
        is_shared = self._of_weight.get(weight, place) != place
        self._of_weight[weight] = None if is_shared else place
