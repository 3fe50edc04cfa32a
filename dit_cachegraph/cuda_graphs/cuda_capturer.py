"""CUDA graphs: captured on a stream of their own, each on top of the same pool of memory.

Not Inductor's trees, which are of one thread, record again when weights move, and hand out memory
that the next replay writes over.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from dit_cachegraph.cuda_graphs.capturer import Made
from dit_cachegraph.exc import InvalidConfig

NUM_WARM_UPS = 2
# To capture, or to give a graph up, is to wait for all streams of a device. While another thread
# captures on one of them, that raises, and ends its capture.
_ONE_AT_A_TIME = threading.Lock()


class CudaGraph:
    """A `Captured`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self._graph, self._device = graph, device

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        with _ONE_AT_A_TIME:
            torch.cuda.synchronize(self._device)
        self._graph.reset()


class CudaCapturer:
    """A `Capturer`. The device has an index."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)
        self._end_of_turn = torch.cuda.Event()
        self._failed: list[torch.cuda.CUDAGraph] = []

    def empty(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num_elements, dtype=dtype, device=self.device)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._end_of_turn)
        try:
            yield
        finally:
            self._end_of_turn.record(stream)

    def warm_up(self, run: Callable[[], Made]) -> Made:
        current = torch.cuda.current_stream(self.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(NUM_WARM_UPS - 1):
                run()
            made = run()
        current.wait_stream(self._side)
        return made

    def capture(self, run: Callable[[], None]) -> CudaGraph:
        graph = torch.cuda.CUDAGraph()
        causes: list[RuntimeError] = []

        def noted() -> None:
            try:
                run()
            except RuntimeError as cause:
                causes.append(cause)
                raise

        is_captured = False
        try:
            self._capture(graph, noted)
            is_captured = True
        except RuntimeError as error:
            # The end of a capture that failed raises too, and says less.
            raise (causes[0] if causes else error) from None
        finally:
            if not is_captured:
                self._give_up(graph)
        return CudaGraph(graph, self.device)

    def _capture(self, graph: torch.cuda.CUDAGraph, run: Callable[[], None]) -> None:
        # A capture that fails leaves its stream the current one.
        with _ONE_AT_A_TIME, torch.cuda.stream(self._side):
            captures = torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            )
            with captures:
                run()

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Begin anew after a capture that failed. Torch's allocator is left in the middle of it,
        and goes on to ask the graph whether it is captured."""
        self._failed.append(graph)
        with suppress(RuntimeError):  # The allocator may be past it.
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
            torch._C._cuda_releasePool(self.device.index, self._pool)
        if TorchVersion(torch.__version__) < "2.13":
            # Or nobody can draw random numbers any more: the generator's own state is told of a
            # capture, and of no end. A copy of that state is as it would be without.
            generator = torch.cuda.default_generators[self.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(self.device)


def cuda_capturer(device: torch.device) -> CudaCapturer:
    """What captures on the device of a model.

    Raises:
        InvalidConfig: that is no GPU.
    """
    if device.type != "cuda":
        raise InvalidConfig(
            f"cuda_graphs needs the model on a CUDA device, and its blocks run on {device.type}: "
            "move it there before its first call, or leave the option out"
        )
    return CudaCapturer(device)
