"""How a function becomes `torch.ops.dit_cachegraph.<its name>`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from dit_cachegraph_kernels._triton import HAS_TRITON

NAMESPACE = "dit_cachegraph"

# An op is there for as long as the library that it belongs to.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(function: Callable[..., Any], mutates_args: Iterable[str] = ()) -> None:
    """Make an op of a function, which is its body on every device: a compiler traces through it.

    With Triton the op is a `triton_op`, which needs no rule for fake tensors, and whose kernels
    (found in the sources of what the function calls, which has to exist by now) are part of the
    key of Inductor's caches. Without, `triton_op` would log a warning for each op; a composite op
    is traced through just so.
    """
    name = function.__name__
    if HAS_TRITON:
        torch.library.triton_op(f"{NAMESPACE}::{name}", function, mutates_args=mutates_args)
    else:
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, function, "CompositeImplicitAutograd")
