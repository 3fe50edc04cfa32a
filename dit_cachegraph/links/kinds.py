"""What is known of the kinds of calls of one model: watched, joined, or refused.

calls 1, 2, 3 of a kind    they compute, and are watched; all three alike
from call 4 on             steps of a trunk, or refused for good with the reason
"""

import inspect
import logging
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from dit_cachegraph.calls import note_refused, note_watched
from dit_cachegraph.links.chain import INSTEAD, chain_of
from dit_cachegraph.links.given import Given
from dit_cachegraph.links.link import Link, Places
from dit_cachegraph.links.model import LinkedModel, RefusedLinks
from dit_cachegraph.links.placeholder import can_forbid_access
from dit_cachegraph.links.roles import Numbers, numbers_in, roles_of
from dit_cachegraph.links.share import costs_of, is_beside, why_no_trunk
from dit_cachegraph.links.step import CHANGED, LinkedStep
from dit_cachegraph.links.watch import WatchedCall
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.plan import Uncacheable

NUM_WATCHED = 3
MAX_WATCHED = 24
MAX_KINDS = 64
log = logging.getLogger("dit_cachegraph")


class Call(Protocol):
    """A call of the model that is under way."""

    def run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]: ...

    def end(self) -> None: ...


class PlainCall:
    """A call of which nothing is cached."""

    def run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]:
        return link.function(*args)

    def end(self) -> None:
        """Nothing was begun."""


class Watched:
    """The calls of one kind that were watched, for as long as they are alike."""

    def __init__(self) -> None:
        self.calls: list[tuple[WatchedCall, Numbers]] = []
        self.num_calls = 0

    def add(self, call: WatchedCall, numbers: Numbers) -> None:
        """A call is over."""
        self.num_calls += 1
        alike = [known for known in self.calls if _are_alike(known[0], call)]
        self.calls = [*alike, (call, numbers)] if call.counts else []

    @property
    def is_done(self) -> bool:
        return len(self.calls) >= NUM_WATCHED or self.num_calls >= MAX_WATCHED


def _are_alike(one: WatchedCall, other: WatchedCall) -> bool:
    return (one.seen, one.broken, one.read_at_end) == (other.seen, other.broken, other.read_at_end)


class _Watching:
    """A watched call, of which the numbers of the caller's are read at its end."""

    def __init__(self, call: WatchedCall, watched: Watched, given: Given) -> None:
        self._call, self._watched, self._numbers = call, watched, numbers_in(given)

    def run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]:
        return self._call.run(link, args)

    def end(self) -> None:
        self._call.end()
        self._watched.add(self._call, self._numbers)


UNSEEN = "the calls before were watched, and were no steps of it"

Known = Watched | LinkedModel | RefusedLinks


class Kinds:
    """The kinds of calls of one model that begin with one link."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._places = Places(model)
        self._known: dict[Hashable, Known] = {}

    def begin(self, link: Link, given: Given) -> Call:
        """A call of the model has come to its first link."""
        model = self._model()
        assert model is not None, "it is being called"
        known = self._of(link, given, model)
        if isinstance(known, LinkedModel):
            values = known.values_of_call(given)
            if values is not None:
                give_up = partial(self._give_up, given.signature)
                return LinkedStep(known, values, self._places, give_up)
            known = self._known[given.signature] = Watched()
        state = REGISTRY.of_module(model)
        if isinstance(known, RefusedLinks):
            state.add(known)
            note_refused(state, known.refusal, is_block=True)
            return PlainCall()
        note_watched(state)
        return _Watching(WatchedCall(self._places), known, given)

    def _of(
        self, link: Link, given: Given, model: nn.Module
    ) -> Watched | LinkedModel | RefusedLinks:
        known = self._known.get(given.signature)
        if known is None:
            known = self._new()
        if isinstance(known, Watched) and known.is_done:
            known = _joined(known, link, given, model)
            if isinstance(known, LinkedModel):
                REGISTRY.of_module(model).requests.free_all(UNSEEN)
        self._known[given.signature] = known
        return known

    def _new(self) -> Known:
        if torch.is_inference_mode_enabled() and not can_forbid_access():
            return RefusedLinks(Uncacheable(
                "blocks that are compiled one by one are not cached under `torch.inference_mode()` "
                "without CUDA, since nobody counts writes there: use `torch.no_grad()`"
            ))  # fmt: skip
        if len(self._known) >= MAX_KINDS:
            return RefusedLinks(Uncacheable(
                "its calls differ in numbers that are no tensors, or in shapes, each from those "
                f"before; {INSTEAD}"
            ))  # fmt: skip
        return Watched()

    def _give_up(self, signature: Hashable, why: str) -> None:
        """A call did not do as those that were watched."""
        if why == CHANGED:
            self._known.pop(signature, None)
            return
        refusal = Uncacheable(f"{why}, which it did not do when it was watched; {INSTEAD}")
        self._known[signature] = RefusedLinks(refusal)
        log.warning("%s", refusal)


def _joined(
    watched: Watched, link: Link, given: Given, model: nn.Module
) -> LinkedModel | RefusedLinks:
    if len(watched.calls) < NUM_WATCHED:
        return RefusedLinks(Uncacheable(f"no three calls in a row are alike; {INSTEAD}"))
    call, _ = watched.calls[-1]
    chain = chain_of(call)
    if isinstance(chain, Uncacheable):
        beside = chain.has_no_blocks or is_beside(call, model)
        return RefusedLinks(replace(chain, has_no_blocks=beside))
    costs = costs_of(chain, model)
    why = why_no_trunk(chain, costs)
    if why is not None:
        return RefusedLinks(Uncacheable(why))
    parameters = tuple(inspect.signature(model.forward).parameters)
    roles = roles_of(given, [numbers for _, numbers in watched.calls], parameters)
    return LinkedModel(chain, given, roles, link.settings, model, costs)
