"""One step of a model whose blocks were compiled one by one: the links ask what to do.

    link 0 | begin; run       link 2 | skipped: a placeholder     link 5 | the last that is skipped:
    link 1 | run; decide      ...      a placeholder each                | the estimates

Each link first checks that the caller does as it did when it was watched: this link, this block,
and the very object that the link before returned, unwritten, while nothing older is alive. If not,
what was skipped runs after all, its true values take the place of the placeholders, the rest
computes, nothing is written down, and this kind of call is refused from now on.

What no link sees is code that begins to read between two blocks, or that stops before the last
one: it has placeholders in its hands (`placeholder.py`). So has what computes on, where arguments
of a skipped block were written to since, or its weights were moved away. And where the model's own
attributes change only values of the conditioning, between two blocks, nothing shows.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import is_

from torch import Tensor

from dit_cachegraph.links.link import Link, Places
from dit_cachegraph.links.model import LinkedModel
from dit_cachegraph.links.placeholder import Handed, Pending, laid_out, placeholder
from dit_cachegraph.links.watch import numbers_of
from dit_cachegraph.requests.request import current_caller
from dit_cachegraph.runtime.step import Step
from dit_cachegraph.runtime.weights import Weights
from dit_cachegraph.segments.slots import Values, tensor_at

CHANGED = "other weights, or another graph"  # No fault of the caller's: it is watched anew.
GiveUp = Callable[[str], None]


class LinkedStep:
    """The state of one call of the model, for as long as it is under way."""

    def __init__(self, model: LinkedModel, values: Values, places: Places, give_up: GiveUp) -> None:
        self._model, self._places, self._give_up = model, places, give_up
        self._values = values
        self._num_called = 0
        self._is_plain = False
        self._step: Step | None = None
        self._weights: Weights | None = None
        self._walk: Iterator[tuple[int, int]] = iter(())
        self._waiting: tuple[int, int] | None = None
        self._handed = Handed(())
        self._older: list[Handed] = []
        self._pending: list[Pending] = []
        self._entered: Sequence[object] = ()
        self._first_pending = 0

    def run(self, link: Link, args: Sequence[object]) -> Sequence[Tensor]:
        """Run the link, or what the step puts in its place."""
        chain = self._model.chain
        i = self._num_called - chain.num_before
        self._num_called += 1
        if self._is_plain or not 0 <= i < len(chain.links):
            return link.function(*args)
        why = self._why_not(i, link, args)
        if why is not None:
            self._make_good(why)
            return link.function(*args)
        self._forget_what_died()
        if i == 0:
            self._begin(args)
        call = Pending(link, args, [q for q, _ in chain.links[i].entries])
        assert self._waiting is not None, "the epilogue comes after the last link"
        if self._waiting[0] <= i + 1:
            outputs, stand_in = self._compute(i, call), frozenset[int]()
        else:
            outputs, stand_in = self._skip(i, call, args)
        self._hand(call, outputs, stand_in)
        is_last = i + 1 == len(chain.links)  # The epilogue is the caller's.
        self._advance(i + 3 if is_last else i + 2)
        return outputs

    def end(self) -> None:
        """The model has returned, or raised: a step that isn't at its end is dropped."""

    def _why_not(self, i: int, link: Link, args: Sequence[object]) -> str | None:
        """Why this call of a link is not what was watched."""
        chain, expected = self._model.chain, self._model.chain.links[i]
        place = expected.place
        if self._is_other(i, link, args):
            is_same_block = self._places.of(link, args) == expected.place
            return CHANGED if is_same_block else f"another block is called in the place of {place}"
        if i == 0:
            return None
        before = chain.links[i - 1]
        handed = zip(expected.entries, self._model.fed[i], strict=True)
        if not all(self._handed.is_output(p, args[q]) for (q, _), p in handed):
            return f"the code before {place} hands on another value than {before.place} returned"
        fed = {q for q, _ in expected.entries}
        if any(self._handed.has(args[q]) for q in link.graph.tensors if q not in fed):
            return f"{place} is given what {before.place} returned in another place"
        if self._handed.is_written():
            return f"the code before {place} writes to what {before.place} returned"
        if any(handed.has_living_stand_in() for handed in self._older):
            return f"what a block before {before.place} returned is kept by the caller"
        return None

    def _is_other(self, i: int, link: Link, args: Sequence[object]) -> bool:
        expected = self._model.chain.links[i]
        return (
            expected.link() is not link
            or not all(map(is_, link.weights_of(args), [ref() for ref in expected.weights]))
            or expected.numbers != numbers_of(link, args)
        )

    def _begin(self, args: Sequence[object]) -> None:
        values, model = self._values, self._model
        slots = model.slots.streams[0]
        for q, stream in model.chain.links[0].entries:
            values[slots[stream]] = args[q]
        self._step = model.begin(values, current_caller())
        self._weights = self._step.weights
        self._walk = model.walker.walk(self._step)
        self._waiting = next(self._walk)
        self._advance(1)

    def _advance(self, num_done: int) -> None:
        """Go on to what is to run next, once the first `num_done` segments are dealt with."""
        while self._waiting is not None and self._waiting[1] <= num_done:
            self._waiting = next(self._walk, None)
        if self._waiting is None and self._step is not None:
            self._model.end(self._step)
            self._step, self._values = None, []

    def _compute(self, i: int, call: Pending) -> Sequence[Tensor]:
        values, slots = self._values, self._model.slots
        values[slots.of_call(i)] = call
        self._model.segments.run(values, i + 1, i + 2)
        values[slots.of_call(i)] = None
        outputs, last_use = [], self._model.compiled.trunk.last_use
        for stream in self._model.chain.links[i].exits:
            slot = slots.streams[i + 1][stream]
            outputs.append(tensor_at(values, slot))
            if last_use[slot] <= i + 1:
                values[slot] = None
        return outputs

    def _skip(
        self, i: int, call: Pending, args: Sequence[object]
    ) -> tuple[Sequence[Tensor], frozenset[int]]:
        """The estimates, if this is the last link that is skipped; else placeholders."""
        link, slots = self._model.chain.links[i], self._model.slots.streams[i + 1]
        if not self._pending:
            self._entered, self._first_pending = [args[q] for q, _ in link.entries], i
        self._pending.append(call)
        assert self._waiting is not None
        last_use, is_last = self._model.compiled.trunk.last_use, self._waiting[0] == i + 2
        outputs, stand_in = [], set()
        for p, (stream, spec) in enumerate(zip(link.exits, link.returned, strict=True)):
            if is_last and last_use[slots[stream]] > i + 1:
                estimate = tensor_at(self._values, slots[stream])
                has_next = i + 1 < len(self._model.chain.links)
                outputs.append(laid_out(estimate, spec) if has_next else estimate.contiguous())
            else:
                outputs.append(placeholder(spec))
                stand_in.add(p)
        return outputs, frozenset(stand_in)

    def _hand(self, call: Pending, outputs: Sequence[Tensor], stand_in: frozenset[int]) -> None:
        if self._handed.stand_in:
            self._older.append(self._handed)
        self._handed = call.handed = Handed(outputs, stand_in)

    def _forget_what_died(self) -> None:
        """Once no placeholder is left, nothing can have to be made good."""
        self._older.clear()
        if self._pending and not self._handed.stand_in:
            self._pending.clear()
            self._entered = ()

    def _are_weights_unwritten(self) -> bool:
        """Since the step began: what was skipped would run with others."""
        before = self._weights
        if before is None:
            return True
        return self._model.weights.read(list(before.tensors)).num_writes == before.num_writes

    def _make_good(self, why: str) -> None:
        """Run what was skipped, drop the step, and refuse such calls from now on."""
        streams, links = self._entered, self._model.chain.links
        are_unwritten = self._are_weights_unwritten()
        for k, call in enumerate(self._pending, self._first_pending):
            if not (are_unwritten and call.can_run()):
                break
            true = call.run(streams)
            assert call.handed is not None
            call.handed.make_good(true)
            if k + 1 < len(links):
                streams = [true[p] for p in self._model.fed[k + 1]]
        self._is_plain, self._step, self._values = True, None, []
        self._pending.clear()
        self._give_up(why)
