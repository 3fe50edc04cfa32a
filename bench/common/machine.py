"""Where figures come from: one line that belongs under every table."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the software of a run. `commit` ends in `+` where files were changed."""

    cpu: str
    num_cores: int
    torch: str
    diffusers: str
    python: str
    commit: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.num_cores} cores, torch {self.torch}, diffusers {self.diffusers}, "
            f"Python {self.python}, commit {self.commit}"
        )


def this_machine() -> Machine:
    """The running one."""
    return Machine(
        cpu=_cpu_model(),
        num_cores=os.cpu_count() or 1,
        torch=torch.__version__,
        diffusers=_diffusers_version(),
        python=platform.python_version(),
        commit=_commit(),
    )


def _diffusers_version() -> str:
    try:
        return version("diffusers")
    except PackageNotFoundError:
        return "none"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    commit, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain")
    return commit + ("+" if changed else "") if commit else "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
