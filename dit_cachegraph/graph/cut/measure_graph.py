"""The graph of the diff, for the layout of the probe stream.

Inputs: size arguments, hidden, hidden_in, previous. It is compiled with the segments, into one pass
over these three, and serves every `Fn`, since the stream has one layout at every border.
"""

from dataclasses import dataclass

import torch
from torch import fx

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
    """The diff of the probe stream.

    hidden, hidden_in, previous -> [sum|r - p|, sum|p|] of each sample, with r = hidden - hidden_in
    """
    ops.load_kernels()
    arguments = [n for n in assignment.nodes if n.op == "placeholder"]
    entry = probe.at[0]
    assert entry is not None
    hidden = borders.fake(entry)
    latents = value_of(arguments[roles.latents[0]]) if roles.latents else None
    sizes = size_arguments([hidden], assignment)
    batch_dim = batch_dim_of(hidden, latents)
    graph = fx.Graph()
    for node in sizes:
        graph.placeholder(node.name)
    given = [graph.placeholder(name) for name in ("hidden", "hidden_in", "previous")]
    diff = torch.ops.dit_cachegraph.residual_diff.default
    graph.output((graph.call_function(diff, (*given, batch_dim)),))
    module = fx.GraphModule(torch.nn.Module(), graph, class_name="Measure")
    values = (*(value_of(n) for n in sizes), hidden, hidden, hidden)
    return MeasureGraph(sizes, batch_dim, SegmentGraph(module, values))


def batch_dim_of(stream: object, latents: object) -> int | None:
    """The dimension of the stream that has the latents' batch size: 0 nearly always (some models
    put tokens first); None where samples and tokens are folded into one, then all is one sample."""
    if not isinstance(stream, torch.Tensor) or not isinstance(latents, torch.Tensor):
        return None
    batch = str(latents.shape[0]) if latents.dim() else ""
    sizes = [str(size) for size in stream.shape[:-1]]
    return sizes.index(batch) if batch in sizes else None
