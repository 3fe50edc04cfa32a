"""When a Triton kernel runs, in what tiles, and what is said when it can't."""

import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_cachegraph_kernels._layout import Layout
from dit_cachegraph_kernels._triton import HAS_TRITON, TritonError, is_real

SWITCH = "DIT_CACHEGRAPH_KERNELS"

# Elements of one tile: with 8 warps, 16 a thread, which is two 16-byte loads of bfloat16.
TILE = 4096
# The same for kernels that hold many tensors at once.
SMALL_TILE = 2048
NUM_WARPS = 8
# Tiles that a program of a reduction adds up, so that the second pass is short.
TILES_PER_CHUNK = 4
# Wider tiles gain nothing where columns are contiguous, and waste more at the end of a row.
MAX_BLOCK_COLS = 1024

_LAUNCH_ERRORS = (TritonError, RuntimeError, OSError, subprocess.CalledProcessError)
# How Triton's driver begins what CUDA said, and what that is about where the binary doesn't fit.
_CUDA_SAID = "Triton Error [CUDA]"
_OF_THE_BINARY = ("kernel image", "PTX", "device function")


class KernelError(RuntimeError):
    """A Triton kernel did not compile or launch."""


class PlainKernelsWarning(UserWarning):
    """A GPU runs the plain form of the ops, for want of Triton."""


def _is_plain_wanted() -> bool:
    wanted = os.environ.get(SWITCH, "triton")
    if wanted not in ("triton", "plain"):
        raise ValueError(f"{SWITCH} must be 'triton' or 'plain', got {wanted!r}")
    return wanted == "plain"


IS_PLAIN_WANTED = _is_plain_wanted()


def uses_triton(tensor: Tensor) -> bool:
    """Whether an op on this tensor launches its kernel; else it runs in its plain form."""
    if tensor.device.type != "cuda" or IS_PLAIN_WANTED:
        return False
    if not HAS_TRITON:
        # Python shows a warning once for each place that it comes from.
        warnings.warn(
            "triton is not installed: the ops of dit_cachegraph run in plain PyTorch on the GPU; "
            f"install triton, or set {SWITCH}=plain to run so without this warning.",
            PlainKernelsWarning,
            stacklevel=1,
        )
    return HAS_TRITON


@contextmanager
def launching(op: str, tensor: Tensor) -> Iterator[None]:
    """Launch on the tensor's device, and turn what is wrong with the kernel into a `KernelError`.

    A device that is out of memory, or broken, says so itself. While an op is traced nothing is
    launched, and the tracer's own errors pass.
    """
    if not is_real(tensor):
        yield
        return
    try:
        with torch.cuda.device_of(tensor):
            yield
    except _LAUNCH_ERRORS as error:
        if _is_of_the_device(error):
            raise
        raise KernelError(
            f"the Triton kernel of dit_cachegraph::{op} did not compile or launch on "
            f"{_device_name(tensor)} with torch {torch.__version__}: "
            f"{type(error).__name__}: {error}. Install the triton that this torch asks for, or set "
            f"the environment variable {SWITCH}=plain before Python starts to run without kernels."
        ) from error


def _is_of_the_device(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    said = str(error)
    return said.startswith(_CUDA_SAID) and not any(word in said for word in _OF_THE_BINARY)


def _device_name(tensor: Tensor) -> str:
    return torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else str(tensor.device)


def block_sizes(num_cols: int, is_flat: bool, tile: int = TILE) -> tuple[int, int]:
    """(rows, columns) of a tile, both powers of two.

    Columns divide a row where they can. A size that is a symbol is not looked at, since that would
    tie the trace to it.
    """
    if is_flat:
        return 1, tile
    if not isinstance(num_cols, int):
        return tile // MAX_BLOCK_COLS, MAX_BLOCK_COLS
    block_cols = num_cols & -num_cols
    if block_cols < 128:
        block_cols = 1 << (num_cols - 1).bit_length()
    block_cols = min(block_cols, MAX_BLOCK_COLS)
    return tile // block_cols, block_cols


def ceil_div(size: int, block: int) -> int:
    """How many blocks cover a size, which may be a symbol."""
    return (size + block - 1) // block


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the rows and columns of a layout are shared out: one tile a program."""

    layout: Layout
    block_rows: int
    block_cols: int

    @property
    def num_col_tiles(self) -> int:
        return ceil_div(self.layout.num_cols, self.block_cols)

    @property
    def num_tiles(self) -> int:
        return self.num_col_tiles * ceil_div(self.layout.num_rows, self.block_rows)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What a kernel takes after the tensors."""
        layout = self.layout
        return layout.num_rows, layout.num_inner, layout.num_cols, self.num_col_tiles

    @property
    def blocks(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        blocks = {"BLOCK_ROWS": self.block_rows, "BLOCK_COLS": self.block_cols}
        return {**blocks, "num_warps": NUM_WARPS}


def tiles_of(layout: Layout, tile: int = TILE) -> Tiles:
    """The tiles of a layout."""
    return Tiles(layout, *block_sizes(layout.num_cols, layout.is_flat, tile))


@dataclass(frozen=True, slots=True)
class Chunks:
    """How the rows and columns of each sample are shared out: to each program `num_tiles` tiles
    side by side. There are `num_chunks` a sample, `num_col_chunks` beside each other."""

    layout: Layout
    block_rows: int
    block_cols: int
    num_tiles: int

    @property
    def num_col_chunks(self) -> int:
        return ceil_div(self.layout.num_cols, self.block_cols * self.num_tiles)

    @property
    def num_chunks(self) -> int:
        return self.num_col_chunks * ceil_div(self.layout.num_rows, self.block_rows)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """What a kernel takes after the tensors."""
        layout, num_chunks = self.layout, (self.num_chunks, self.num_col_chunks)
        return layout.num_rows, layout.num_inner, layout.num_cols, *num_chunks

    @property
    def blocks(self) -> dict[str, int]:
        """What a kernel is compiled for."""
        blocks = {"BLOCK_ROWS": self.block_rows, "BLOCK_COLS": self.block_cols}
        return {"NUM_TILES": self.num_tiles, **blocks, "num_warps": NUM_WARPS}


def chunks_of(layout: Layout, has_whole_rows: bool = False) -> Chunks:
    """The shares for a layout; with `has_whole_rows` no row is split."""
    block_rows, block_cols = block_sizes(layout.num_cols, layout.is_flat)
    num_tiles = TILES_PER_CHUNK
    if has_whole_rows:
        # The loop over a row is compiled for its length.
        num_tiles = ceil_div(int(layout.num_cols), block_cols)
    elif isinstance(layout.num_cols, int):
        num_tiles = min(num_tiles, ceil_div(layout.num_cols, block_cols))
    return Chunks(layout, block_rows, block_cols, num_tiles)
