"""The device of a run, and the software that its kernels come from."""

import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch


@dataclass(frozen=True, slots=True)
class Device:
    """What the figures are of. `triton` and the rest are None where there is none."""

    name: str
    triton: str | None
    cuda: str | None
    driver: str | None
    num_multiprocessors: int | None

    def __str__(self) -> str:
        if self.cuda is None:
            return f"{self.name}, one thread, triton {self.triton}"
        parts = f"{self.num_multiprocessors} multiprocessors, driver {self.driver}"
        return f"{self.name}, {parts}, CUDA {self.cuda}, triton {self.triton}"


def device_of(device: torch.device) -> Device:
    """The facts about a device."""
    if device.type == "cpu":
        return Device("CPU", _triton_version(), None, None, None)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        name=properties.name,
        triton=_triton_version(),
        cuda=torch.version.cuda,
        driver=_driver_version(),
        num_multiprocessors=properties.multi_processor_count,
    )


def _triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None
