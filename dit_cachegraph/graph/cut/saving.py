"""A compiled trunk as bytes, and back, so that another process runs what this one compiled.

    Inductor's functions, as AOTAutograd bundles them    bytes of each
    plain graphs: the modulated input, inner "eager"     bytes of each
    their C++ kernels                                    shared objects
    trunk, roles, what kernels are built for             as they are

Needs torch 2.13: that of before can't save the functions one by one.
"""

import pickle
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx
from torch._dynamo.aot_compile_types import (
    BundledAOTAutogradSerializableCallable,
    GraphModuleSerializableCallable,
    SerializableCallable,
)

from dit_cachegraph import ops
from dit_cachegraph.exc import CannotSave
from dit_cachegraph.graph.cut.calling import as_called
from dit_cachegraph.plan import ArgumentRoles, CompiledTrunk, Original, StreamKind, Trunk

if TYPE_CHECKING:
    from dit_cachegraph.graph.cut.cpp_kernels import CppKernels


class _SavedFunction(NamedTuple):
    of: type[SerializableCallable]
    data: bytes
    makes_only_new_tensors: bool

    @property
    def is_of_inductor(self) -> bool:
        return self.of is BundledAOTAutogradSerializableCallable


class _SavedTrunk(NamedTuple):
    """What is written of a `CompiledTrunk`; `kernels` where Inductor has compiled it."""

    trunk: Trunk
    roles: ArgumentRoles
    functions: tuple[_SavedFunction, ...]
    kernels: "CppKernels | None"
    stream_kind: StreamKind
    allows_batch: Callable[[int], bool]


def trunk_to_bytes(compiled: CompiledTrunk) -> bytes:
    """All that `trunk_from_bytes` needs; no weight is among it.

    Raises:
        CannotSave: its functions weren't compiled to be saved, or by a backend that can't be.
    """
    assert compiled.stream_kind is not None, "its blocks have one graph"
    if compiled.trunk.groups.names:
        raise CannotSave(
            f"ranks share its samples by the process group {compiled.trunk.groups.names[0]!r}, "
            "which is of this run alone: compile it in each"
        )
    functions = tuple(map(_saved, compiled.originals))
    saved = _SavedTrunk(
        trunk=compiled.trunk,
        roles=compiled.roles,
        functions=functions,
        kernels=_kernels_of(functions),
        stream_kind=compiled.stream_kind,
        allows_batch=compiled.allows_batch,
    )
    return pickle.dumps(saved)


def trunk_from_bytes(data: bytes) -> CompiledTrunk:
    """The trunk, ready to run. It runs code that is in `data`."""
    start = time.perf_counter()
    saved: _SavedTrunk = pickle.loads(data)
    ops.load_kernels()  # Plain graphs look for theirs as they are read.
    originals = tuple(map(_loaded, _with_kernels(saved.functions, saved.kernels)))
    num_functions = 1 + max(segment.kind for segment in saved.trunk.segments)
    functions = [as_called(original) for original in originals]
    ops.build_kernels(saved.stream_kind, saved.trunk.batch_dim)
    has_modulated_input = not isinstance(saved.trunk.modulated_input, str)
    return CompiledTrunk(
        trunk=saved.trunk,
        roles=saved.roles,
        functions=tuple(functions[:num_functions]),
        measure=functions[num_functions],
        modulated_input=functions[-1] if has_modulated_input else None,
        allows_batch=saved.allows_batch,
        num_compiled=num_functions,
        compile_seconds=time.perf_counter() - start,
        originals=originals,
        stream_kind=saved.stream_kind,
        is_loaded=True,
    )


def _saved(original: Original) -> _SavedFunction:
    savable = _as_savable(original.function)
    data = savable.serialize_compile_artifacts(savable)
    return _SavedFunction(type(savable), data, original.makes_only_new_tensors)


def _as_savable(function: Callable[..., Any]) -> SerializableCallable:
    graph = getattr(function, "__self__", function)
    if isinstance(graph, fx.GraphModule):
        return GraphModuleSerializableCallable(graph)
    if isinstance(function, SerializableCallable):
        return function
    if getattr(function, "serialize", None) is not None:
        return BundledAOTAutogradSerializableCallable(function)
    raise CannotSave(
        "its segments can't be saved: only plain graphs can be, and what Inductor compiled for "
        "`precompile` or torch's `aot_compile`; with another `inner_backend`, compile it in each "
        "process"
    )


def _kernels_of(functions: Sequence[_SavedFunction]) -> "CppKernels | None":
    """What a compiler has built for what Inductor has compiled."""
    of_inductor = [function.data for function in functions if function.is_of_inductor]
    if not of_inductor:
        return None
    # Importing Inductor takes seconds, and other backends do without it.
    from dit_cachegraph.graph.cut.cpp_kernels import kernels_of  # noqa: PLC0415

    return kernels_of(of_inductor)


def _with_kernels(
    functions: Sequence[_SavedFunction], kernels: "CppKernels | None"
) -> Sequence[_SavedFunction]:
    """The functions, which load the kernels in the place of having them built, if they run here."""
    if kernels is None:
        return functions
    from dit_cachegraph.graph.cut.cpp_kernels import put_down, with_kernels  # noqa: PLC0415

    paths = put_down(kernels)
    return [
        f._replace(data=with_kernels(f.data, paths)) if f.is_of_inductor else f for f in functions
    ]


def _loaded(saved: _SavedFunction) -> Original:
    function = saved.of.deserialize_compile_artifacts(saved.data)
    if isinstance(function, BundledAOTAutogradSerializableCallable):
        function = function.compiled_fn
    return Original(function, saved.makes_only_new_tensors)
