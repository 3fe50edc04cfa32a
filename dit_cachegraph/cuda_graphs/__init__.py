"""Runs of segments that are captured once and replayed: the option `cuda_graphs`.

graphed_run       what a run of segments reads, makes and leaves
captured_values   what its values are to a graph
fresh_casts       what autocast keeps, which no graph may read
static_buffers    memory at fixed addresses, through which they come and leave
stage_graphs      which runs have a graph, which have none and why
capturer          what captures; `cuda_capturer` does so with CUDA
"""
