"""Registers every op as `torch.ops.dit_cachegraph.<name>`, for graphs.

A module of its own, since torch imports Inductor and Dynamo to register an op with Triton kernels:
who calls the functions does without both.
"""

from dit_cachegraph_kernels._register import register
from dit_cachegraph_kernels.block_diff import block_diff
from dit_cachegraph_kernels.forecast_error import forecast_error
from dit_cachegraph_kernels.residual_apply import residual_apply
from dit_cachegraph_kernels.residual_diff import residual_diff
from dit_cachegraph_kernels.residual_store import residual_store
from dit_cachegraph_kernels.taylor_apply import taylor_apply
from dit_cachegraph_kernels.taylor_update import taylor_update

register(residual_diff)
register(residual_store, mutates_args=("out",))
register(residual_apply)
register(taylor_update, mutates_args=("factors",))
register(taylor_apply)
register(forecast_error)
register(block_diff)
