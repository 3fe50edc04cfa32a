"""Kernels of C++ whose shared objects are at hand, as Inductor's generated code asks for them."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppPythonBindingsCodeCache

log = logging.getLogger("dit_cachegraph")


class BuiltKernels(AsyncCompile):
    """In the place of Inductor's `AsyncCompile`: loads each kernel that `paths` has a shared object
    for, by the hash of its C++, and has all others compiled as ever."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        super().__init__()
        self._paths = paths

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Callable[..., Any]:
        path = self._paths.get(hash_of(argtypes, source_code))
        if path is not None:
            try:
                return _kernel_in(path)
            except (ImportError, OSError) as error:
                log.warning("a saved kernel can't be loaded, and is built anew: %s", error)
        compiled: Any = super().cpp_pybinding(argtypes, source_code)
        return compiled.result() if hasattr(compiled, "result") else compiled


def hash_of(argtypes: Sequence[str], source_code: str) -> str:
    """By which the shared object of a kernel is found."""
    return hashlib.sha256(f"{list(argtypes)} {source_code}".encode()).hexdigest()


def object_of(kernel: Callable[..., Any]) -> bytes:
    """The shared object that a kernel was loaded from: it is a function of a module in C."""
    module: Any = kernel.__self__  # type: ignore[attr-defined]
    return Path(module.__file__).read_bytes()


def _kernel_in(path: str) -> Callable[..., Any]:
    # Torch's own way of loading them, since they read an address that it puts into the environment.
    module = CppPythonBindingsCodeCache._load_library(path, Path(path).stem)
    kernel: Callable[..., Any] = getattr(module, CppPythonBindingsCodeCache.entry_function)
    return kernel
