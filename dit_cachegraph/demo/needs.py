"""What the demo and the server need beside torch, said in one sentence where it is missing."""

from collections.abc import Sequence

from dit_cachegraph.installed import is_installed

PACKAGES = ("diffusers", "transformers", "safetensors", "matplotlib", "skimage", "tqdm")
SERVER_PACKAGES = (
    *("diffusers", "transformers", "safetensors"),
    *("fastapi", "uvicorn", "prometheus_client", "PIL"),
)


def what_is_missing(
    what: str = "demo", extra: str = "demo", packages: Sequence[str] = PACKAGES
) -> str | None:
    """One sentence about what has to be installed before it can run; None if nothing."""
    missing = [name for name in packages if not is_installed(name)]
    if missing:
        return (
            f'the {what} needs {", ".join(missing)}: run pip install "dit_cachegraph[{extra}]" (in '
            f'a checkout, pip install -e ".[{extra}]")'
        )
    return None if _has_cpp_compiler() else NO_COMPILER


NO_COMPILER = (
    "torch.compile needs a C++ compiler on the CPU and found none that runs: install one (on "
    "Debian and Ubuntu the package g++), or name yours in the environment variable CXX"
)


def _has_cpp_compiler() -> bool:
    """Inductor's own search, so that the answer is the one that it will come to."""
    # Importing Inductor takes seconds, which a missing package shouldn't cost.
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415
    from torch._inductor.exc import InvalidCxxCompiler  # noqa: PLC0415

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return False
    return True
