"""What the driver does beside its segments at a step, counted on the CPU as a GPU would see it: the
kernels that it launches, the streams that these read and write, and the copies that are waited for.

A kernel is each operation that is not a view and makes more than an empty tensor; an op of ours is
as many as it launches. The segments' own work is left out; the compiled diff stands for the kernels
that Inductor makes of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

import dit_cachegraph_kernels
from dit_cachegraph import ops
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.runtime.driver import CachedModel

KERNELS_OF_OURS = {"residual_diff": 2, "block_diff": 2, "forecast_error": 2, "taylor_apply": 1}
KERNELS_OF_MEASURE = 2  # Partial sums, and their sum.
MAKE_NOTHING = ("_unsafe_view",)


class Launch(NamedTuple):
    """An operation: its name, how many kernels it is, and how many streams it reads and writes."""

    name: str
    num_kernels: int
    num_streams: int


@dataclass
class Counted:
    """One step. `num_waits`: copies to the host that were begun in it and waited for; `num_late`:
    those of the step before that were waited for by themselves, and not behind one of this step."""

    launches: list[Launch] = field(default_factory=list)
    num_waits: int = 0
    num_late: int = 0

    @property
    def num_kernels(self) -> int:
        return sum(launch.num_kernels for launch in self.launches)

    @property
    def num_streams(self) -> int:
        return sum(launch.num_streams for launch in self.launches)

    @property
    def row(self) -> tuple[int, int, int]:
        """As it stands in a table: kernels, waits, streams."""
        return self.num_kernels, self.num_waits, self.num_streams


class LaunchCounter(TorchDispatchMode):
    """Counts what runs while it is on. `stream_size`: elements of the image's stream."""

    def __init__(self, stream_size: int) -> None:
        super().__init__()
        self.counted = Counted()
        self._stream_size = stream_size
        self.is_paused = False
        self._on_host: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.is_paused:
            given, made = _tensors_in((args, kwargs)), _tensors_in(out)
            if given and all(id(tensor) in self._on_host for tensor in given):
                self.are_on_host(made)
            else:
                self.note(func, [*given, *made])
        return out

    def are_on_host(self, tensors: Sequence[Tensor]) -> None:
        """They were copied to the host, or made there of such."""
        self._on_host |= {id(tensor): tensor for tensor in tensors}

    def note(self, func, values: Sequence[Tensor]) -> None:
        name = str(func).removesuffix(".default")
        short = name.split(".")[1]
        if func.is_view or short.startswith(("empty", "new_empty")) or short in MAKE_NOTHING:
            return
        self.add(name, 1, values)

    def add(self, name: str, num_kernels: int, values: Sequence[Tensor]) -> None:
        sizes = [value.numel() for value in values]
        self.counted.launches.append(Launch(name, num_kernels, sizes.count(self._stream_size)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before


def _tensors_in(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def watched_copy(counter: LaunchCounter) -> type[ops.HostCopy]:
    """A copy to the host, which notes when it is first waited for."""

    class WatchedCopy(ops.HostCopy):
        def __init__(self, numbers: Sequence[Tensor]) -> None:
            self._begun, self._is_waited_for = counter.counted, False
            super().__init__(numbers)

        def add(self, numbers: Sequence[Tensor], *, are_callers: bool = False) -> None:
            with counter.paused():
                super().add(numbers, are_callers=are_callers)

        def read(self) -> list[Tensor]:
            read, now = super().read(), counter.counted
            if read and not self._is_waited_for:
                now.num_waits += self._begun is now
                now.num_late += self._begun is not now and now.num_waits == 0
                self._is_waited_for = True
            counter.are_on_host(read)
            return read

    return WatchedCopy


def counted_op(counter: LaunchCounter, op: str) -> Callable[..., object]:
    """An op of ours, counted as the kernels that it launches on a GPU."""
    function = getattr(dit_cachegraph_kernels, op)

    def run(*args):
        is_counted = _get_current_dispatch_mode() is counter and not counter.is_paused
        with counter.paused():
            out = function(*args)
        if is_counted:
            counter.add(f"dit_cachegraph.{op}", KERNELS_OF_OURS[op], _tensors_in((args, out)))
        return out

    return run


def driver_of(model: nn.Module) -> CachedModel:
    """The driver of a model that has one graph."""
    (driver,) = REGISTRY.of_module(model).graphs.values()
    assert isinstance(driver, CachedModel)
    return driver


def count_steps(
    model: nn.Module,
    call: Callable[[int], None],
    num_steps: int,
    stream_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> list[Counted]:
    """What each of the steps `call(i)` did, after a first one that compiles."""
    call(0)
    driver, counter = driver_of(model), LaunchCounter(stream_size)
    run, measure = driver.segments.run, driver.reader._measure

    def run_unseen(*args):
        with counter.paused():
            run(*args)

    def measured(inputs):
        counter.add("measure", KERNELS_OF_MEASURE, _tensors_in(inputs))
        with counter.paused():
            return measure(inputs)

    def called(self, *args):
        with counter:  # Dynamo runs nothing compiled under a mode of the dispatcher.
            return uncounted(self, *args)

    uncounted = CachedModel.__call__
    monkeypatch.setattr(CachedModel, "__call__", called)
    monkeypatch.setattr(driver.segments, "run", run_unseen)
    monkeypatch.setattr(driver.reader, "_measure", measured)
    for op in KERNELS_OF_OURS:
        monkeypatch.setattr(dit_cachegraph_kernels, op, counted_op(counter, op))
    monkeypatch.setattr(ops, "HostCopy", watched_copy(counter))
    found = []
    for i in range(1, num_steps):
        counter.counted = Counted()
        call(i)
        found.append(counter.counted)
    monkeypatch.undo()
    return [Counted(), *found]
