"""Says in one sentence what is missing before `make` installs or runs anything.

    check_environment.py host          the interpreter that makes the environment, the compiler
    check_environment.py choice SPEC   what pip would install for SPEC, from its metadata alone
    check_environment.py torch         the torch that the running interpreter imports

The file has to parse on interpreters that are too old for the package, so that they get the
sentence and not a traceback: no syntax and no annotation newer than Python 3.6.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)


def refuse(sentence: str) -> None:
    print("error: " + sentence, file=sys.stderr)
    sys.exit(1)


def dotted(version: tuple) -> str:
    return ".".join(str(part) for part in version)


def check_host() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found = dotted(tuple(sys.version_info[:3]))
        refuse(
            f"Python {dotted(OLDEST_PYTHON)} or later is needed and {sys.executable} is {found}; "
            "name a newer one, for example `make test PYTHON=python3.12`."
        )
    if importlib.util.find_spec("ensurepip") is None:
        refuse(
            f"{sys.executable} cannot make virtual environments (no ensurepip); "
            "install the venv package of your Python, on Debian and Ubuntu python3-venv."
        )
    compilers = [os.environ.get("CXX", "")] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(shutil.which(name.split()[0]) for name in compilers):
        refuse(
            f"no C++ compiler found (looked for {', '.join(compilers)}) and torch.compile needs "
            "one on the CPU; install one, on Debian and Ubuntu the package g++."
        )
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        refuse(
            f"the C headers of {sys.executable} (Python.h) are missing and torch.compile needs "
            "them on the CPU; install them, on Debian and Ubuntu the package python3-dev."
        )


def check_version(name: str, version: str) -> None:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match.group(1)), int(match.group(2))) < OLDEST_TORCH:
        refuse(f"torch {dotted(OLDEST_TORCH)} or later is needed and {name} is torch {version}.")


def check_choice(spec: str) -> None:
    """Refuses a CUDA build on Linux without an NVIDIA GPU, unless CUDA=1 asks for it.

    pip reads the metadata of the build it would take; nothing is installed.
    """
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--no-deps"]
    command += ["--ignore-installed", "--report", "-", spec]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        refuse(f"pip could not resolve {spec} for this machine; its own message stands above.")
    metadata = json.loads(result.stdout.decode())["install"][0]["metadata"]
    check_version(spec, metadata["version"])
    needed = [line for line in metadata.get("requires_dist", []) if "extra ==" not in line]
    cuda_packages = [line for line in needed if re.match(r"(nvidia|cuda)[-_]", line)]
    has_gpu = shutil.which("nvidia-smi") is not None
    wants_cuda = os.environ.get("CUDA") == "1" or has_gpu or not sys.platform.startswith("linux")
    if cuda_packages and not wants_cuda:
        refuse(
            f"{spec} is a CUDA build here, which brings several GB of CUDA packages, and this "
            "machine has no NVIDIA GPU (no nvidia-smi); let pip find a CPU build (set "
            "PIP_EXTRA_INDEX_URL to PyTorch's index for CPU, or TORCH=path/to/a/cpu.whl), or add "
            "CUDA=1 to take this one."
        )


def check_torch() -> None:
    try:
        import torch  # noqa: PLC0415  (the other two commands run where it is not installed)
    except (ImportError, OSError) as error:
        refuse(f"torch is installed but cannot be imported: {error}.")
    else:
        check_version("the installed one", str(torch.__version__))


def main(arguments: list) -> None:
    if arguments == ["host"]:
        check_host()
    elif len(arguments) == 2 and arguments[0] == "choice":
        check_choice(arguments[1])
    elif arguments == ["torch"]:
        check_torch()
    else:
        refuse("usage: check_environment.py host | choice SPEC | torch")


if __name__ == "__main__":
    main(sys.argv[1:])
