"""Which packages are installed, asked without importing them."""

import importlib.util


def is_installed(name: str) -> bool:
    """Whether it is a package with code. To Python any folder of that name on its path is one, as
    the `ray` that Ray makes in the temporary folder, for a program that is started there."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None
