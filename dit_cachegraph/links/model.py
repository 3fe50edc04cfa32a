"""The driver of a trunk whose blocks were compiled one by one."""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dit_cachegraph.links.chain import Chain
from dit_cachegraph.links.given import Given
from dit_cachegraph.links.trunk import Slots, compiled_trunk, slots_of
from dit_cachegraph.plan import Costs, FragmentRoles, Uncacheable
from dit_cachegraph.runtime.driver import CachedModel
from dit_cachegraph.segments.slots import Values


class LinkedModel(CachedModel):
    """The driver's part of a call that the links of a chain make, one after the other."""

    def __init__(
        self,
        chain: Chain,
        given: Given,
        roles: FragmentRoles,
        settings: Mapping[str, object],
        called: nn.Module,
        costs: Costs,
    ) -> None:
        self.chain: Chain = chain
        self.slots: Slots = slots_of(chain, given)
        self.fed: tuple[tuple[int, ...], ...] = _fed(chain)
        compiled = compiled_trunk(chain, self.slots, given, roles, costs)
        self._called = weakref.ref(called)
        super().__init__(compiled, settings, type(called))

    def values_of_call(self, given: Given) -> Values | None:
        """A slot for each value of a call; None where a weight of the chain is gone."""
        weights = [ref() for link in self.chain.links for ref in link.weights]
        if not all(isinstance(weight, Tensor) for weight in weights):
            return None
        calls = [None] * len(self.chain.links)
        return self.segments.values_of([*weights, *given.tensors, *calls])

    def _called_module(self) -> nn.Module | None:
        return self._called()


def _fed(chain: Chain) -> tuple[tuple[int, ...], ...]:
    """For each link the outputs of the one before that it is given, as its entries stand; none for
    the first."""
    pairs = zip(chain.links, chain.links[1:], strict=False)
    later = [tuple(a.exits.index(stream) for _, stream in b.entries) for a, b in pairs]
    return ((), *later)


@dataclass(frozen=True, eq=False)
class RefusedLinks:
    """Calls of one kind whose links can't be joined, for the report."""

    refusal: Uncacheable
