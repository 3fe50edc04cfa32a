"""What captures a run of kernels and replays it: CUDA (`cuda_capturer`), or what stands in for it
where there is none.

Memory that a capture takes belongs to one pool, and means nothing any more as soon as another
capture of the pool is replayed. So who replays takes turns, and leaves nothing in the pool.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Captured(Protocol):
    """A run that was captured."""

    def replay(self) -> None:
        """Do again what was captured, on the memory that it was captured with."""

    def release(self) -> None:
        """It won't be replayed any more."""


class Capturer(Protocol):
    """Captures on one device, in one pool of memory."""

    @property
    def device(self) -> torch.device:
        """Where all that is captured lies."""

    def empty(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """[num_elements] outside of the pool, by which values come into a capture and leave it."""

    def in_turn(self) -> AbstractContextManager[None]:
        """What is begun in here waits on the device for what was begun in the turn before. One
        thread at a time may be in it."""

    def warm_up(self, run: Callable[[], Made]) -> Made:
        """Run it as often as it takes until nothing is set up any more; what it made last."""

    def capture(self, run: Callable[[], None]) -> Captured:
        """What `run` asks of the device, which does none of it yet.

        Raises:
            RuntimeError: it asked for what can't be captured, such as a copy to the host.
        """
