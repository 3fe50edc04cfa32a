"""`cuda_graphs=True`: runs of segments that are replayed instead of called.

    copy what comes in | replay | copy what leaves

A graph is kept for each (run of segments, shapes and strides, host numbers) of a model. Diff,
forecasts and state lie outside. Nothing of the pool leaves a run, so what holds elsewhere holds as
it does without graphs: a result stays what it is, an exception changes nothing, and threads share a
model. Weights lie where they lay when a graph was captured, or there are no graphs any more.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import filterfalse
from typing import NamedTuple

import torch

from dit_cachegraph.cuda_graphs.captured_values import (
    addresses_of,
    device_tensors,
    in_buffers,
    is_number,
    kind_of,
    number_of,
    why_not_static,
)
from dit_cachegraph.cuda_graphs.capturer import Captured, Capturer
from dit_cachegraph.cuda_graphs.fresh_casts import fresh_casts
from dit_cachegraph.cuda_graphs.graphed_run import Run, run_of
from dit_cachegraph.cuda_graphs.static_buffers import Buffer, StaticBuffers, fill
from dit_cachegraph.models import ModelState
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.segments.segment_runner import SegmentRunner
from dit_cachegraph.segments.slots import Values, tensors

MAX_GRAPHS = 128
MAX_NUMBERS = 4
NUMBERS_CHANGE = (
    "it is given numbers on the host that change from call to call, and a graph is of one of them"
)
MOVED = (
    "weights of {} lie elsewhere than when they were captured (offloading, an adapter, `to`); "
    "leave the option out for a model whose weights move, or compile it anew once they stay: "
    "`torch._dynamo.reset()`"
)
_Key = tuple[object, object]  # What it is given, but for numbers of the host; these.
RANKS = "ranks share each sample, and a capture can't wait for the others"


class StageGraph(NamedTuple):
    """A run that was captured, with weights at some `addresses`. Of what it leaves, numbers are the
    same at each replay."""

    captured: Captured
    given: Sequence[Buffer]
    left: Sequence[Buffer | object]
    addresses: Sequence[int]

    def replay(self, inputs: Sequence[object]) -> list[object]:
        """What the run leaves, each tensor in memory of its own."""
        fill(self.given, device_tensors(inputs))
        self.captured.replay()
        return [each.copied() if isinstance(each, Buffer) else each for each in self.left]


class GraphedRunner:
    """Runs the segments of one trunk, by graphs where that can be. The models that share a trunk
    have graphs of their own in one pool."""

    def __init__(
        self, compiled: CompiledTrunk, segments: SegmentRunner, capturer: Capturer
    ) -> None:
        self._trunk, self.segments, self.capturer = compiled.trunk, segments, capturer
        self.buffers = StaticBuffers(capturer)
        self.run_of = lru_cache(maxsize=1024)(partial(run_of, compiled.trunk))
        self._turn = threading.Lock()
        self._of_models: weakref.WeakKeyDictionary[ModelState, ModelGraphs] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, model: ModelState) -> "ModelGraphs":
        """The graphs of one model."""
        found = self._of_models.get(model)
        if found is None:
            with self._turn:
                why_off = RANKS if self._trunk.groups.names else None
                found = self._of_models.setdefault(model, ModelGraphs(self, why_off))
        return found

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The pool and the buffers belong to who is in here."""
        with self._turn, self.capturer.in_turn():
            yield

    def blank(self) -> Values:
        """A slot for each value of a call."""
        return [None] * self._trunk.num_slots


class ModelGraphs:
    """The graphs of one model on one trunk. `why_off`: why there are none."""

    def __init__(self, runner: GraphedRunner, why_off: str | None) -> None:
        self._runner, self._why_off = runner, why_off
        self._kept: OrderedDict[_Key, StageGraph] = OrderedDict()
        self._why_eager: dict[tuple[int, int], str] = {}
        self._num_given_up = 0

    def run(self, values: Values, start: int, stop: int) -> None:
        """Run segments `start..stop-1`, as `SegmentRunner.run` does."""
        if start == stop:
            return
        run = self._runner.run_of(start, stop)
        made = None if self._is_eager(run) else self._replayed(run, values)
        if made is None:
            self._runner.segments.run(values, start, stop)
            return
        for slot in run.dead:
            values[slot] = None
        for slot, value in zip(run.leaves, made, strict=True):
            values[slot] = value

    def lines(self) -> tuple[str, ...]:
        """What the report says of them."""
        if self._why_off is not None:
            return (f"CUDA graphs are off: {self._why_off}",)
        told = f"{len(self._kept)} CUDA graphs"
        if self._num_given_up:
            told += f", {self._num_given_up} given up for others, since {MAX_GRAPHS} are kept"
        nbytes = self._runner.buffers.nbytes
        causes = list(self._why_eager.items())
        eager = [f"{self._runner.run_of(*at).name} runs without: {why}" for at, why in causes]
        return (f"{told}, {nbytes / 2**20:.2f} MiB of buffers", *eager)

    def _is_eager(self, run: Run) -> bool:
        if self._why_off is None and run.why_eager is not None:
            self._why_eager.setdefault(run.place, run.why_eager)
        return self._why_off is not None or run.place in self._why_eager

    def _replayed(self, run: Run, values: Values) -> list[object] | None:
        """What the run leaves; None where it has to run as it is."""
        inputs, weights = run.inputs_of(values), run.weights_of(values)
        kind = (run.place, tuple(map(kind_of, inputs)))
        key = (kind, tuple(map(number_of, inputs)))
        with self._runner.in_turn():
            graph = self._kept.get(key) or self._new(run, key, inputs, weights)
            if graph is None:
                return None
            if graph.addresses != addresses_of(weights):
                self._turn_off(MOVED.format(run.name))
                return None
            self._kept.move_to_end(key)
            return graph.replay(inputs)

    def _new(
        self, run: Run, key: _Key, inputs: Sequence[object], weights: Sequence[object]
    ) -> StageGraph | None:
        """A graph that is kept from now on; None, with the reason written down, where there can't
        be one. What the run itself raises is raised."""
        if self._is_eager(run):  # Another thread had the turn.
            return None
        if sum(kind == key[0] for kind, _ in self._kept) >= MAX_NUMBERS:
            self._why_eager[run.place] = NUMBERS_CHANGE
            return None
        try:
            graph = self._captured(run, inputs, weights)
        except torch.OutOfMemoryError:
            self._why_eager[run.place] = "there isn't the memory to capture it"
            return None
        if graph is not None:
            self._keep(key, graph)
        return graph

    def _captured(
        self, run: Run, inputs: Sequence[object], weights: Sequence[object]
    ) -> StageGraph | None:
        buffers, capturer = self._runner.buffers, self._runner.capturer
        read = [*filterfalse(is_number, inputs), *weights]
        if not self._may_be_static(run, read):
            return None
        own = device_tensors(inputs)
        given = buffers.like(own)
        fill(given, own)
        called = self._called(run, in_buffers(inputs, own, given), weights)
        made = capturer.warm_up(called)
        leaving = tensors(made)
        left = buffers.like([*own, *leaving])[len(own) :]

        def whole() -> None:
            fill(left, tensors(called()))

        captured = self._or_why_not(run, lambda: capturer.capture(whole))
        if captured is None:
            return None
        results = in_buffers(made, leaving, left)
        return StageGraph(captured, given, results, addresses_of(weights))

    def _called(
        self, run: Run, inputs: Sequence[object], weights: Sequence[object]
    ) -> Callable[[], list[object]]:
        """The run on its buffers."""
        runner = self._runner
        fixed = [each.shaped if isinstance(each, Buffer) else each for each in inputs]
        pairs = [*zip(run.inputs, fixed, strict=True), *zip(run.weights, weights, strict=True)]

        def called() -> list[object]:
            values = runner.blank()
            for slot, value in pairs:
                values[slot] = value
            with fresh_casts():
                runner.segments.run(values, run.start, run.stop)
            return [values[slot] for slot in run.leaves]

        return called

    def _or_why_not(self, run: Run, capture: Callable[[], Captured]) -> Captured | None:
        """What was captured; None, with the reason written down, where that failed. Whatever is
        raised, it isn't tried again."""
        self._why_eager[run.place] = "its capture was cut short"
        try:
            captured = capture()
        except RuntimeError as error:
            said = str(error).strip().partition("\n")[0]
            self._why_eager[run.place] = f"its capture failed: {said}"
            return None
        del self._why_eager[run.place]
        return captured

    def _may_be_static(self, run: Run, values: Sequence[object]) -> bool:
        """Whether a graph can be given what a run reads; if not, the reason is written down."""
        for value in values:
            why = why_not_static(value, self._runner.capturer.device)
            if why is not None:
                self._why_eager[run.place] = f"it reads {why}"
                return False
        return True

    def _keep(self, key: _Key, graph: StageGraph) -> None:
        self._kept[key] = graph
        while len(self._kept) > MAX_GRAPHS:
            _, oldest = self._kept.popitem(last=False)
            oldest.captured.release()
            self._num_given_up += 1

    def _turn_off(self, why: str) -> None:
        self._why_off = why
        for graph in self._kept.values():
            graph.captured.release()
        self._kept.clear()
