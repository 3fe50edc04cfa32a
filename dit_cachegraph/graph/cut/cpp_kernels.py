"""The C++ kernels of what Inductor compiled, saved as the shared objects that they were built to.

    generated code of a graph    async_compile = AsyncCompile()         asks a compiler for each
    as it is loaded              async_compile = BuiltKernels({...})    has those that were saved

Torch saves the kernels' C++ alone. Even where its own cache holds what was built of them, it runs
the compiler to find it: for its version, for what it can build, and over a header (torch 2.13).
"""

import ast
import hashlib
import logging
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeGuard

from torch._inductor.codecache import get_hash, get_path, write_atomic
from torch._inductor.output_code import CompiledFxGraph

from dit_cachegraph.cpu import cpu_features, features_lacking_here
from dit_cachegraph.graph.cut.built_kernels import BuiltKernels, hash_of, object_of

log = logging.getLogger("dit_cachegraph")

_COMPILES = "async_compile = AsyncCompile()"
_LOADS = f"from {BuiltKernels.__module__} import BuiltKernels; async_compile = BuiltKernels"
_COMPILES_LINE = re.compile(f"^{re.escape(_COMPILES)}$", re.MULTILINE)
_LOADS_LINE = re.compile(rf"^{re.escape(_LOADS)}\((.*)\)$", re.MULTILINE)


class CppKernels(NamedTuple):
    """Shared objects by the hash of the C++ that they were built of, and the sets of instructions
    of the CPU that they were built on and for (`-march=native`)."""

    built_for: frozenset[str]
    objects: dict[str, bytes]


def kernels_of(bundles: Iterable[bytes]) -> CppKernels:
    """The kernels of functions as torch has saved them, all of which this process has loaded."""
    objects = {}
    for bundle in bundles:
        graph = _graph_in(pickle.loads(bundle))
        if graph is not None:
            objects.update(_objects_of(graph.source_code))
    return CppKernels(cpu_features(), objects)


def put_down(kernels: CppKernels) -> dict[str, str]:
    """Write the shared objects into Inductor's cache. Returns the path of each; none, with a line
    in the log, where this CPU can't run them."""
    missing = features_lacking_here(kernels.built_for)
    if kernels.objects and missing:
        log.warning(
            "the saved kernels were built for a CPU that has %s, which this one lacks: a compiler "
            "builds them anew",
            ", ".join(missing),
        )
        return {}
    return {name: _put_down(data) for name, data in kernels.objects.items()}


def with_kernels(bundle: bytes, paths: Mapping[str, str]) -> bytes:
    """A function as torch has saved it, but that it loads its kernels from `paths`."""
    saved = pickle.loads(bundle)
    graph = _graph_in(saved)
    if graph is None:
        return bundle
    # As Inductor wrote it, also if it was loaded and saved once more.
    source = _LOADS_LINE.sub(_COMPILES, graph.source_code)
    used = {name: paths[name] for name, _, _ in _kernels_in(source) if name in paths}
    if used:
        source = _COMPILES_LINE.sub(lambda _: f"{_LOADS}({used!r})", source)
    if source == graph.source_code:
        return bundle
    graph.source_code = source
    # Torch writes the code to a file of this name, unless there is one.
    graph.cache_key = get_hash(source.strip())
    return pickle.dumps(saved)


def _graph_in(saved: object) -> CompiledFxGraph | None:
    """What Inductor made, in what torch saves of a function that AOTAutograd has wrapped."""
    entry = saved[0] if isinstance(saved, tuple) else saved
    graph = getattr(getattr(entry, "compiled_fw", None), "result", None)
    return graph if isinstance(graph, CompiledFxGraph) else None


def _objects_of(source: str) -> dict[str, bytes]:
    line = _LOADS_LINE.search(source)
    compiler = BuiltKernels(ast.literal_eval(line[1]) if line is not None else {})
    return {
        name: object_of(compiler.cpp_pybinding(argtypes, cpp))
        for name, argtypes, cpp in _kernels_in(source)
    }


def _kernels_in(source: str) -> Iterator[tuple[str, list[str], str]]:
    """The hash, the types of the arguments and the C++ of each kernel that generated code has."""
    for node in ast.walk(ast.parse(source)):
        if _asks_for_a_kernel(node):
            argtypes, cpp = map(ast.literal_eval, node.args)
            yield hash_of(argtypes, cpp), argtypes, cpp


def _asks_for_a_kernel(node: ast.AST) -> TypeGuard[ast.Call]:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == BuiltKernels.cpp_pybinding.__name__
    )


def _put_down(data: bytes) -> str:
    path = get_path(hashlib.sha256(data).hexdigest(), "so")[2]
    if not Path(path).is_file() or Path(path).read_bytes() != data:
        write_atomic(path, data, make_dirs=True)
    return path
