"""What a node makes of values without data, other than those with which Dynamo traced it."""

from collections.abc import Callable

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor

from dit_cachegraph.graph.fx_utils import tensors_in


def made_of(node: fx.Node, read: Callable[[fx.Node], object]) -> object:
    """The value of a call that is given `read` of each node that it reads, one of them a tensor.
    Contexts around it (autocast, `vmap`) are not entered."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), read)  # type: ignore[arg-type]
    tensor = next(tensors_in([read(argument) for argument in node.all_input_nodes]))
    assert isinstance(tensor, FakeTensor)
    with tensor.fake_mode, torch.no_grad(), enable_python_dispatcher():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
