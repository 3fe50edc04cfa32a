"""How often a step hands numbers of a tensor to Python, which may wait for its device: by a copy to
the host, or by another call. What was copied once is read for nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

READING = ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy")
OF_COPIES = ("dit_cachegraph/ops.py", "runtime/reading.py", "requests/conditioning.py")


def num_reads(compiled: nn.Module, kwargs: dict[str, object], host_copies: list[int]) -> int:
    """Those of one step; `host_copies` is the fixture."""
    host_copies.clear()
    with torch.no_grad(), _other_reads() as others:
        compiled(**kwargs)
    return len(host_copies) + len(others)


@contextmanager
def _other_reads() -> Iterator[list[str]]:
    """The names of calls from here on that read a tensor which was not copied."""
    seen: list[str] = []

    def note(frame, event, function) -> None:
        is_method = event == "c_call" and isinstance(getattr(function, "__self__", None), Tensor)
        if is_method and function.__name__ in READING:
            place = Path(frame.f_code.co_filename).as_posix()
            if not place.endswith(OF_COPIES):
                seen.append(function.__name__)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)
