"""What a cache does to a diffusion transformer's streams, each in one pass over memory.

Every op is a function here, and `torch.ops.dit_cachegraph.<name>` for graphs, once `graph_ops` has
been imported. On a CUDA device it launches a Triton kernel; on any other, and without Triton, it
runs in a plain form that Inductor fuses (`reference`). Needs torch and Triton alone.
"""

from dit_cachegraph_kernels._launch import KernelError, PlainKernelsWarning
from dit_cachegraph_kernels._source_key import source_key
from dit_cachegraph_kernels._triton import HAS_TRITON
from dit_cachegraph_kernels.block_diff import block_diff
from dit_cachegraph_kernels.build import build_kernels
from dit_cachegraph_kernels.forecast_error import forecast_error
from dit_cachegraph_kernels.residual_apply import residual_apply
from dit_cachegraph_kernels.residual_diff import residual_diff
from dit_cachegraph_kernels.residual_store import residual_store
from dit_cachegraph_kernels.taylor_apply import taylor_apply
from dit_cachegraph_kernels.taylor_update import taylor_update

__all__ = [
    "HAS_TRITON",
    "KernelError",
    "PlainKernelsWarning",
    "block_diff",
    "build_kernels",
    "forecast_error",
    "residual_apply",
    "residual_diff",
    "residual_store",
    "source_key",
    "taylor_apply",
    "taylor_update",
]
