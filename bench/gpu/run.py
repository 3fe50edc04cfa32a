"""Where a part runs, and how near its outputs have to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu.image import Sizes

MAX_ERROR = 1e-3
NEEDS_GPU = ("not run", "there is no GPU")
# What a part finds, by name, as it finds it; a name that comes again has more to it.
Found = Iterator[tuple[str, object]]


@dataclass(frozen=True, slots=True)
class Run:
    """Where, how large, and what compiles the segments."""

    device: torch.device
    sizes: Sizes
    inner: str = "inductor"

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"


def worst_error(own: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative L1 error of any step; NaN if any is that."""
    pairs = [(a.float(), b.float()) for a, b in zip(own, wanted, strict=True)]
    return torch.stack([(a - b).abs().sum() / b.abs().sum() for a, b in pairs]).max().item()
