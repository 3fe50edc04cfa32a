"""Triton, where it is installed. `tl` is the name under which Inductor knows its language."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None

if HAS_TRITON:
    import triton.language as tl
    from triton import jit
    from triton.errors import TritonError
else:
    import dit_cachegraph_kernels._no_triton as tl
    from dit_cachegraph_kernels._no_triton import TritonError, jit

__all__ = ["HAS_TRITON", "TritonError", "is_real", "jit", "tl", "wrap_triton"]


def wrap_triton(kernel: Any, tensor: Tensor) -> Any:  # noqa: ANN401 (Triton has no types)
    """What launches a kernel: the kernel itself on a tensor with data (also where Triton is in its
    interpreter, which `torch.library.wrap_triton` refuses before torch 2.13), and what a trace can
    record on one without.

    It goes by torch's name because torch reads the source of an op for calls of it: the kernels
    that it finds are part of the key under which a compiled graph is cached.
    """
    return kernel if is_real(tensor) else torch.library.wrap_triton(kernel)


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor has data, and doesn't stand for one in a trace."""
    return type(tensor) in (Tensor, torch.nn.Parameter)
