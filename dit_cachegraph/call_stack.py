"""Python's stack, from a graph of ours outwards: which modules are being called, and by which call
of what `torch.compile` returned."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_COMPILED_CALL = "compile_wrapper"  # what `torch.compile` puts around what it was given, since 2.9

_MODULE_CALL = nn.Module._wrapped_call_impl.__code__

_OURS_OR_TORCHS = frozenset((Path(__file__).parent, Path(torch.__file__).parent))


def compiled_from(target: object) -> nn.Module | None:
    """The module for which `torch.compile` returned `target`; None where it is something else. Its
    class is Dynamo's, which isn't imported where nothing is compiled: it is told by its one part.
    """
    return target._modules.get("_orig_mod") if isinstance(target, nn.Module) else None


def compiled_call() -> FrameType | None:
    """The innermost call of what `torch.compile` returned."""
    return next((f for f in _frames() if f.f_code.co_name == _COMPILED_CALL), None)


def model_being_called() -> nn.Module | None:
    """The outermost module whose call is under way inside what was compiled, also where that is its
    forward alone: which isn't on the stack yet while its first graph is compiled."""
    found = None
    for frame in _frames():
        if frame.f_code.co_name == _COMPILED_CALL:
            owner = getattr(frame.f_locals.get("fn"), "__self__", None)
            return owner if isinstance(owner, nn.Module) else found
        module = _module_of(frame)  # Its truth is its length, if it has one.
        found = found if module is None else module
    return None


def modules_being_called() -> list[nn.Module]:
    """The modules whose calls are under way inside what was compiled, innermost first. Of other
    frames than those of torch's calls no variable is read, as in `outermost_call`; the code of
    these may be what Dynamo made of it."""
    found: dict[nn.Module, None] = {}
    for frame in _frames():
        if frame.f_code.co_name == _COMPILED_CALL:
            return list(found)
        is_call = frame.f_code.co_filename == _MODULE_CALL.co_filename
        if is_call and (module := _module_of(frame)) is not None:
            found[module] = None
    return []


def is_in_model_code() -> bool:
    """Whether code that isn't torch's runs between the call of what was compiled and its graph: a
    break has left it to Python."""
    for frame in _frames():
        if frame.f_code.co_name == _COMPILED_CALL:
            return False
        if not _OURS_OR_TORCHS.intersection(Path(frame.f_code.co_filename).parents):
            return True
    return False


def module_being_compiled(wrappers: frozenset[Path] = frozenset()) -> nn.Module | None:
    """The module whose forward is what is being compiled, and all of it. Its frame isn't on the
    stack yet, so that torch's call of it is the innermost: a function that a forward calls, or what
    is left of it after a break, has the model's code below it. Code in the folders `wrappers` is
    taken for torch's."""
    found, around = None, _OURS_OR_TORCHS | wrappers
    for frame in _frames():
        module = _module_of(frame)
        is_torchs = around.intersection(Path(frame.f_code.co_filename).parents)
        is_other = found is not None and module is not None and module is not found
        if frame.f_code.co_name == _COMPILED_CALL or is_other or not is_torchs:
            return found
        found = module if found is None else found
    return None


def own_compiled_call() -> FrameType | None:
    """The call of what `torch.compile` returned for the innermost module alone; None where that was
    compiled as a part of another."""
    for frame in _frames():
        if frame.f_code.co_name == _COMPILED_CALL:
            return frame
        if frame.f_code is _MODULE_CALL:
            return None
    return None


def outermost_call() -> FrameType | None:
    """The call of the outermost module that is under way. No frame's variables are read: on Python
    3.12 and before, whoever does keeps what they held alive."""
    found = None
    for frame in _frames():
        if frame.f_code is _MODULE_CALL:
            found = frame
    return found


def outermost_module() -> nn.Module | None:
    """The outermost module whose call is under way, whatever was compiled of it. Of its callers no
    variable is read, as in `outermost_call`."""
    call = outermost_call()
    return None if call is None else _module_of(call)


def _module_of(frame: FrameType) -> nn.Module | None:
    caller = frame.f_locals.get("self")
    return caller if isinstance(caller, nn.Module) else None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
