"""What stands in for CUDA graphs on a CPU: it records operations, and does them again on the very
memory that they were recorded with.

It is as strict as a GPU is, or more. A capture computes nothing: what it made is garbage until it
is replayed. Memory of the pool is garbage whenever no replay is under way, and so are the buffers
between two turns. A number can't be read in a capture. Two threads in a turn are an error.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dit_cachegraph.cuda_graphs.capturer import Made

NUM_WARM_UPS = 2
CPU = torch.device("cpu")


class Operation(NamedTuple):
    """One that was recorded, and the tensors that it made."""

    call: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    made: Sequence[Tensor]


class Recorder(TorchDispatchMode):
    """Records what is asked for, except the operations that are `refused` in a capture, and reading
    a number that `buffers` or the capture hold."""

    def __init__(self, refused: Sequence[str], buffers: Sequence[Tensor]) -> None:
        super().__init__()
        self._refused, self._unknown = refused, {_place(buffer) for buffer in buffers}
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        name, given = func.overloadpacket.__name__, {_place(t) for t in _tensors_in((args, kwargs))}
        is_read = name == "_local_scalar_dense" and given & self._unknown
        if is_read or name in self._refused:
            raise RuntimeError(f"{func} is not permitted when stream is capturing\nmore of it")
        made = func(*args, **kwargs)
        new = [t for t in _tensors_in(made) if _place(t) not in given]
        self._unknown.update(map(_place, new))
        if new or func._schema.is_mutable:
            # A graph knows where weights lie, and keeps none alive.
            args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
            self.operations.append(Operation(func, args, kwargs, new))
        return made


class Recording:
    """A `Captured`."""

    def __init__(self, capturer: "RecordingCapturer", operations: Sequence[Operation]) -> None:
        self._capturer, self._operations = capturer, operations
        self._pool = [made for operation in operations for made in operation.made]
        self.num_replays, self.is_released = 0, False
        _spoil(self._pool)

    @property
    def names(self) -> list[str]:
        """Of the operations."""
        return [str(operation.call) for operation in self._operations]

    @torch.inference_mode()
    def replay(self) -> None:
        assert self._capturer.is_in_turn and not self.is_released
        self.num_replays += 1
        try:
            for call, args, kwargs, made in self._operations:
                for into, value in zip(made, _new_of(call(*args, **kwargs), made), strict=True):
                    into.copy_(value)
        finally:
            _spoil(self._pool)

    def release(self) -> None:
        self.is_released = True


class RecordingCapturer:
    """A `Capturer`. `refused` are names of operations that can't be captured."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.device = CPU
        self.recordings: list[Recording] = []
        self.num_failed, self.is_in_turn = 0, False
        self._refused = refused
        self._all_buffers: list[weakref.ref[Tensor]] = []

    def empty(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.empty(num_elements, dtype=dtype)
        _spoil([buffer])
        self._all_buffers.append(weakref.ref(buffer))
        return buffer

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        assert not self.is_in_turn, "two turns at once"
        self.is_in_turn = True
        try:
            yield
        finally:
            for buffer in self._buffers():
                _spoil([buffer])
            self.is_in_turn = False

    def warm_up(self, run: Callable[[], Made]) -> Made:
        assert self.is_in_turn
        for _ in range(NUM_WARM_UPS - 1):
            run()
        return run()

    def capture(self, run: Callable[[], None]) -> Recording:
        assert self.is_in_turn
        buffers = self._buffers()
        before = [buffer.clone() for buffer in buffers]
        self.num_failed += 1
        with Recorder(self._refused, buffers) as recorder:
            run()
        self.num_failed -= 1
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        recording = Recording(self, recorder.operations)
        self.recordings.append(recording)
        return recording

    def _buffers(self) -> list[Tensor]:
        """Those that something uses."""
        found = [(each, each()) for each in self._all_buffers]
        self._all_buffers = [each for each, buffer in found if buffer is not None]
        return [buffer for _, buffer in found if buffer is not None]


def _tensors_in(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _new_of(value: object, made: Sequence[Tensor]) -> list[Tensor]:
    """What an operation has made anew, in the order of what it made when it was recorded."""
    return _tensors_in(value)[: len(made)]


@torch.inference_mode()
def _spoil(tensors: Sequence[Tensor]) -> None:
    """Write over them what shows wherever it goes."""
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).max)
