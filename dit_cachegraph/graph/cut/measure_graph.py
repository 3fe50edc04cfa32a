"""The graph of the fused diff (`ops.measure`), for the layout of the probe stream.

Inputs: size arguments, hidden, hidden_in, previous, timesteps, latents. It is compiled with the
segments and serves every `Fn`, since the stream has one layout at every border.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from dit_cachegraph import ops
from dit_cachegraph.graph.cut.borders import Borders, SegmentGraph, size_arguments
from dit_cachegraph.graph.fx_utils import value_of
from dit_cachegraph.graph.understand.assign_nodes import Assignment
from dit_cachegraph.graph.understand.find_streams import StreamNodes
from dit_cachegraph.plan import ArgumentRoles


@dataclass(frozen=True, slots=True)
class MeasureGraph:
    """The graph of the diff, the size arguments that it takes first, and which dimension of the
    probe stream is the batch."""

    sizes: tuple[fx.Node, ...]
    batch_dim: int | None
    graph: SegmentGraph


def measure_graph(
    assignment: Assignment, borders: Borders, probe: StreamNodes, roles: ArgumentRoles
) -> MeasureGraph:
    """The diff of the probe stream, with clock and latents sample beside it.

    hidden, hidden_in, previous, timestep, latents
    -> cat([max(t), sum(t), sum|r-p|..., sum|p|..., some of the latents...])
    """
    ops.load_kernels()
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    entry = probe.at[0]
    assert entry is not None
    hidden = borders.fake(entry)
    timesteps = [value_of(arguments[i]) for i in roles.timesteps]
    sampled = _joined([value_of(arguments[i]) for i in roles.sampled_latents])
    latents = value_of(arguments[roles.latents[0]]) if roles.latents else None
    sizes = size_arguments([hidden, *timesteps, *sampled], assignment)
    batch_dim = batch_dim_of(hidden, latents)
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    for node in sizes:
        graph.placeholder(node.name)
    names = ["hidden", "hidden_in", "previous", *(f"timestep_{i}" for i in range(len(timesteps)))]
    names += ["latents"] * len(sampled)
    # While it is traced, a Proxy stands for each tensor.
    inputs = [cast(torch.Tensor, fx.Proxy(graph.placeholder(name), tracer)) for name in names]
    observed = ops.measure(
        inputs[0],
        inputs[1],
        inputs[2],
        inputs[3 : 3 + len(timesteps)],
        latents=inputs[-1] if sampled else None,
        batch_dim=batch_dim,
        is_batched=roles.has_batched_sample(batch_dim),
    )
    graph.output((cast(fx.Proxy, observed).node,))
    module = fx.GraphModule(torch.nn.Module(), graph, class_name="Observe")
    values = (*(value_of(n) for n in sizes), hidden, hidden, hidden, *timesteps, *sampled)
    return MeasureGraph(sizes, batch_dim, SegmentGraph(module, values))


def _joined(latents: Sequence[object]) -> list[object]:
    """The latents as their sample is taken of them: several as one flat tensor."""
    if len(latents) < 2:
        return list(latents)
    tensors = [t for t in latents if isinstance(t, torch.Tensor)]
    with tensors[0].fake_mode, torch.no_grad():  # type: ignore[attr-defined]
        return [torch.cat([t.reshape(-1) for t in tensors])]


def batch_dim_of(stream: object, latents: object) -> int | None:
    """The dimension of the stream that has the latents' batch size: 0 nearly always (some models
    put tokens first); None where samples and tokens are folded into one, then all is one sample."""
    if not isinstance(stream, torch.Tensor) or not isinstance(latents, torch.Tensor):
        return None
    batch = str(latents.shape[0]) if latents.dim() else ""
    sizes = [str(size) for size in stream.shape[:-1]]
    return sizes.index(batch) if batch in sizes else None
