"""The lists of blocks of a model, by its modules alone."""

from torch import nn


def outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules that are inside no other list, by path: what is in a list of a block's
    own is a part of that block."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not is_inner:
            found[name] = module
    return found
