"""Machine code of the kernels in what Inductor has generated for a GPU, built without one: by
Inductor's own way to compile a kernel ahead of time, and Triton's assembler."""

import importlib.util
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

_SOURCE = re.compile(
    r"(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", re.DOTALL
)


def built_kernels(codes: Sequence[str]) -> list[str]:
    """The names of all kernels, each of which was built in its first configuration.

    Raises what Triton raises where one can't be. For a process that takes itself for one with a
    GPU (`cuda_code`).
    """
    triton_helpers.set_driver_to_gpu = lambda: None
    found = {source: name for code in codes for name, source in _SOURCE.findall(code)}
    with tempfile.TemporaryDirectory() as folder:
        for i, source in enumerate(found):
            _build(Path(folder) / f"kernel_{i}.py", source)
    return sorted(set(found.values()))


def _build(path: Path, source: str) -> None:
    """Triton reads the source of a kernel from its file."""
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (kernel,) = [value for value in vars(module).values() if isinstance(value, CachingAutotuner)]
    kernel._precompile_config(kernel.configs[0])
