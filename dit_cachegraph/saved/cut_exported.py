"""A model by `torch.export`, cut and packaged, and the form of its calls."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from dit_cachegraph.backend import cut_graph
from dit_cachegraph.exc import CannotSave, InvalidConfig
from dit_cachegraph.graph.cut.compile_segments import stream_kind_of
from dit_cachegraph.graph.cut.package_segments import package_segments
from dit_cachegraph.graph.cut.segment_graph import Cut
from dit_cachegraph.graph.fx_utils import is_size_argument, value_of
from dit_cachegraph.graph.prepare.from_export import as_traced
from dit_cachegraph.plan import StreamKind, Uncacheable
from dit_cachegraph.saved.exported_call import (
    CallForm,
    GivenTensor,
    GivenValue,
    Plain,
    SizeRange,
    as_compiled_for,
)
from dit_cachegraph.saved.size_expression import parse_sizes

_PLAIN = (type(None), bool, int, float, str)
_BUILTIN = frozenset(("builtins.tuple", "builtins.list", "builtins.dict"))


@dataclass(frozen=True, slots=True)
class CutExport:
    """An exported model, its traced graph, and what that was cut into. `example` is what the model
    was called with, in the order of its forward; `values` are what stands for it, by placeholder.
    """

    program: ExportedProgram
    gm: fx.GraphModule
    cut: Cut
    example: Mapping[str, object]
    values: Mapping[str, object]

    @property
    def stream_kind(self) -> StreamKind:
        return stream_kind_of(self.cut)

    @property
    def batch(self) -> str | None:
        """The name of the batch's size, where that is open."""
        size: Any = self.cut.stream.shape[0]
        is_open = isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol)
        return str(size.node.expr) if is_open else None

    @property
    def constants(self) -> dict[str, Tensor]:
        """What its graph takes that is in no state dict, by name."""
        return {n: t for n, t in self.program.constants.items() if n in self._named}

    @property
    def weights(self) -> dict[str, Tensor]:
        """What its graph takes of the state dict."""
        return {n: t for n, t in self.program.state_dict.items() if n in self._named}

    @property
    def _named(self) -> set[str]:
        weights = _weight_names(self.program)
        taken = [node.name for node in self.gm.graph.find_nodes(op="placeholder")]
        return {weights[name] for name in taken if name in weights}


def cut_module(
    module: nn.Module, example: Mapping[str, object], dynamic_shapes: Mapping[str, object]
) -> CutExport:
    """Export a model for calls like the example, and cut it.

    Raises:
        CannotSave: it isn't cached; with the reason.
        InvalidConfig: `dynamic_shapes` has a name or a dimension that the example doesn't have.
    """
    if unknown := sorted(dynamic_shapes.keys() - example.keys()):
        raise InvalidConfig(f"dynamic_shapes tells of {unknown[0]}, which the example doesn't have")
    for name, told in dynamic_shapes.items():
        _check_dimensions(name, example[name], told)
    order = [name for name in inspect.signature(module.forward).parameters if name in example]
    in_order = {name: example[name] for name in (*order, *(example.keys() - set(order)))}
    given = pytree.tree_map_only(Tensor, as_compiled_for, in_order)
    program = torch.export.export(
        module,
        (),
        kwargs=given,
        dynamic_shapes={name: dynamic_shapes.get(name) for name in given},
    )
    _check_structure("is given", program.call_spec.in_spec)
    _check_structure("returns", program.call_spec.out_spec)
    arguments = program.graph.find_nodes(op="placeholder")
    values = {node.name: node.meta.get("val") for node in arguments}
    gm = as_traced(program)
    cut = cut_graph(gm)
    if isinstance(cut, Uncacheable):
        raise CannotSave(f"there is nothing to export: {cut}")
    if cut.trunk.groups.names:
        raise CannotSave(
            f"ranks share its samples by the process group {cut.trunk.groups.names[0]!r}, which is "
            "of this run alone: compile it in each"
        )
    return CutExport(program, gm, cut, given, values)


def package(made: CutExport, archive: Path) -> CallForm:
    """Compile what was cut into the archive, and say how it is called: only now is it known what
    was assumed of its sizes.

    Raises:
        CannotSave: something of it has no form in a file.
    """
    package_segments(made.cut, archive)
    ranges, checks = _sizes_of(made)
    return CallForm(
        names=tuple(made.example),
        structure=pytree.treespec_dumps(pytree.tree_structure(dict(made.example))),
        given=_given(made),
        sizes=ranges,
        checks=checks,
        arguments=_arguments(made),
        results=pytree.treespec_dumps(made.program.call_spec.out_spec),
    )


def _check_dimensions(name: str, given: object, told: object) -> None:
    """Raises: InvalidConfig, for a dimension that a tensor doesn't have, which torch.export leaves
    out without a word."""
    if isinstance(given, Tensor) and isinstance(told, Mapping):
        unknown = [dim for dim in told if dim not in range(given.ndim)]
        if unknown:
            raise InvalidConfig(
                f"dynamic_shapes tells of dimension {unknown[0]} of {name}, which has "
                f"{given.ndim}, counted from 0"
            )
    elif isinstance(given, list | tuple) and isinstance(told, list | tuple):
        for one, of_one in zip(given, told, strict=False):
            _check_dimensions(name, one, of_one)
    elif isinstance(given, Mapping) and isinstance(told, Mapping):
        for key in given.keys() & told.keys():
            _check_dimensions(name, given[key], told[key])


def _check_structure(verb: str, spec: pytree.TreeSpec | None) -> None:
    """Raises CannotSave for classes that another process may not have."""
    assert spec is not None
    text = pytree.treespec_dumps(spec)
    other = next((name for name in _classes_in(json.loads(text)) if name not in _BUILTIN), None)
    if other is not None:
        raise CannotSave(
            f"the model {verb} a {other}, which a process without its code doesn't have: export "
            "it with tuples, lists and dicts (`return_dict=False` in the example, for diffusers)"
        )


def _classes_in(told: object) -> list[str]:
    """The names of classes in what `treespec_dumps` writes."""
    if isinstance(told, dict):
        own = [told["type"]] if isinstance(told.get("type"), str) else []
        return own + _classes_in(list(told.values()))
    return [name for item in told for name in _classes_in(item)] if isinstance(told, list) else []


def _weight_names(program: ExportedProgram) -> dict[str, str]:
    """The weights by the names of their placeholders."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _given(made: CutExport) -> tuple[GivenTensor | GivenValue, ...]:
    paths = [_path(path) for path, _ in pytree.tree_flatten_with_path(dict(made.example))[0]]
    specs = made.program.graph_signature.input_specs
    leaves = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    return tuple(
        GivenValue(path, _plain(path, leaf.value))
        if isinstance(leaf, ConstantArgument)
        else _given_tensor(path, made.values[leaf.name])
        for path, leaf in zip(paths, leaves, strict=True)
    )


def _path(path: pytree.KeyPath) -> str:
    first, *others = path
    assert isinstance(first, pytree.MappingKey)
    return f"{first.key}{pytree.keystr(tuple(others))}"


def _plain(path: str, value: object) -> Plain:
    if not isinstance(value, _PLAIN):
        raise CannotSave(f"{path} is {value!r}, which has no form in a file")
    return value


def _given_tensor(path: str, value: object) -> GivenTensor:
    if not isinstance(value, Tensor):
        raise CannotSave(f"{path} is a number that differs from call to call: give it as a tensor")
    return GivenTensor(path, value.dtype, value.device.type, tuple(map(str, value.shape)))


def _arguments(made: CutExport) -> tuple[int | str, ...]:
    weights, specs = _weight_names(made.program), made.program.graph_signature.input_specs
    leaves = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    taken = made.gm.graph.find_nodes(op="placeholder")
    names = [node.name for node in taken if not is_size_argument(node)]
    return tuple(weights.get(name) or leaves.index(name) for name in names)


def _sizes_of(made: CutExport) -> tuple[tuple[SizeRange, ...], tuple[str, ...]]:
    """The sizes that are open, and what was assumed of them as they were traced and compiled."""
    taken = made.gm.graph.find_nodes(op="placeholder")
    sizes: list[Any] = [value_of(node) for node in taken if is_size_argument(node)]
    if not sizes:
        return (), ()
    shapes = sizes[0].node.shape_env
    ranges = tuple(_range_of(size.node.expr, shapes) for size in sizes)
    found = dict.fromkeys(shapes.replace(guard.expr) for guard in shapes.guards)
    checks = tuple(str(check) for check in found if check != sympy.true)
    for check in checks:
        _check_form(check)
    return ranges, checks


def _range_of(size: sympy.Expr, shapes: Any) -> SizeRange:  # noqa: ANN401  # a ShapeEnv
    if not isinstance(size, sympy.Symbol):
        raise CannotSave(
            f"a size that `dynamic_shapes` leaves open came to be {size}: leave that one out"
        )
    known = shapes.var_to_range[size]
    most = int(known.upper) if known.upper.is_Integer else None
    return SizeRange(str(size), int(known.lower), most)


def _check_form(check: str) -> None:
    try:
        parse_sizes(check)
    except ValueError as error:
        raise CannotSave(f"what was assumed of the sizes has no form in a file: {error}") from error
