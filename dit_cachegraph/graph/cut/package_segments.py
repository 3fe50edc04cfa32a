"""The distinct segments of a cut as AOTInductor packages, all in one archive.

    segment_0, segment_1, ..., modulated_input    code for this machine, without weights

Packages take tensors alone: a size comes to them as that of a tensor without elements, [size, 0].
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import fx

from dit_cachegraph.exc import CannotSave
from dit_cachegraph.graph.cut.segment_graph import Cut
from dit_cachegraph.graph.fx_utils import nodes_in, value_of

_PATCHES = MappingProxyType(
    {
        "aot_inductor.package": True,
        "size_asserts": False,
        "alignment_asserts": False,
        "scalar_asserts": False,
        "triton.cudagraphs": False,
    }
)


class _Packed(NamedTuple):
    """A graph to be compiled, and the fake inputs that it is compiled for."""

    name: str
    gm: fx.GraphModule
    inputs: Sequence[object]


def package_segments(cut: Cut, path: Path) -> None:
    """Compile the graphs of a cut, each by itself, and write them to `path`, a `.pt2`.

    Raises:
        CannotSave: a segment hands on what is no tensor, which packages can't.
    """
    # Importing Inductor takes seconds, and who exports nothing does without it.
    from torch._inductor.compile_fx import compile_fx_aot  # noqa: PLC0415
    from torch._inductor.package import package_aoti  # noqa: PLC0415

    graphs = list(_graphs_of(cut))
    for packed in graphs:
        _check_outputs(packed)
    files = {}
    for name, gm, inputs in map(_with_sizes_in_tensors, graphs):
        files[name] = compile_fx_aot(gm, list(inputs), config_patches=dict(_PATCHES))  # type: ignore[arg-type]
    package_aoti(str(path), files)  # type: ignore[arg-type]


def _graphs_of(cut: Cut) -> Iterator[_Packed]:
    for kind, graph in enumerate(cut.graphs):
        yield _Packed(f"segment_{kind}", graph.gm, graph.example_inputs)
    if cut.modulated_input is not None:
        modulated = cut.modulated_input
        yield _Packed("modulated_input", modulated.gm, modulated.example_inputs)


def _check_outputs(packed: _Packed) -> None:
    (results,) = packed.gm.graph.output_node().args
    for node in nodes_in(results):
        if not isinstance(value_of(node), torch.Tensor | None):
            raise CannotSave(
                f"{packed.name} of the model hands on the number `{node.name}`, and compiled "
                "packages hand on tensors alone: use `precompile`"
            )


def _with_sizes_in_tensors(packed: _Packed) -> _Packed:
    name, gm, given = packed
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    inputs = []
    arguments = gm.graph.find_nodes(op="placeholder")
    for node, value in zip(arguments, given, strict=True):
        env[node] = graph.placeholder(node.name)
        inputs.append(_holding(value, given) if isinstance(value, torch.SymInt) else value)
    for node, value in zip(arguments, given, strict=True):
        if isinstance(value, torch.SymInt):
            env[node] = graph.call_function(torch.ops.aten.sym_size.int, (env[node], 0))
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
    return _Packed(name, fx.GraphModule(gm, graph, class_name="Packed"), inputs)


def _holding(size: torch.SymInt, given: Sequence[object]) -> torch.Tensor:
    tensor = next(value for value in given if isinstance(value, torch.Tensor))
    with tensor.fake_mode:  # type: ignore[attr-defined]  # all values of a trace are FakeTensors
        return torch.empty((size, 0), dtype=torch.uint8, device="cpu")
