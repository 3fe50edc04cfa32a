"""What this CPU can run: code built with `-march=native`, as Inductor's is, may need all of
what the CPU has that it was built on."""

from collections.abc import Iterable
from pathlib import Path

import torch


def cpu_features() -> frozenset[str]:
    """The sets of instructions that this CPU has, by torch's names and, on Linux, by the kernel's,
    which has names for more of them."""
    told = torch.cpu.get_capabilities()
    names = {name for name, value in told.items() if value is True}
    names |= {f"{name} {value}" for name, value in told.items() if name.endswith("_max_length")}
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    of_each = [set(line.partition(":")[2].split()) for line in lines if _tells_features(line)]
    return frozenset(names.union(set.intersection(*of_each) if of_each else ()))


def features_lacking_here(built_for: Iterable[str]) -> list[str]:
    """What code was built for that this CPU doesn't have, sorted."""
    return sorted(set(built_for) - cpu_features())


def _tells_features(line: str) -> bool:
    return line.partition(":")[0].strip() in ("flags", "Features")
