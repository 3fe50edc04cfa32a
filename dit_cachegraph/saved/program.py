"""One graph of a model, compiled ahead of its calls, and what it may be called with.

    forward, one call of it  ->  Dynamo, "cachedit"  ->  Program  ->  bytes  ->  Program elsewhere

Of Dynamo's guards only those on the call's own tensors are kept: sizes, strides, dtypes, devices.
Those on Python's values and on the process can't be saved: `CallKind` stands for them. Those on the
model are left out: `model_parts` stands for them.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.aot_compile import AOTCompiledFunction
from torch._dynamo.exc import Unsupported
from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

from dit_cachegraph.backend import cachedit
from dit_cachegraph.exc import CannotLoad, CannotSave
from dit_cachegraph.runtime.uncached import UncachedModel
from dit_cachegraph.saved.call_kind import CallKind
from dit_cachegraph.saved.model_parts import kept_tensors

Args = Sequence[object]
Kwargs = Mapping[str, object]
Options = Mapping[str, object]

_KEPT = frozenset(("TENSOR_MATCH", "SHAPE_ENV"))


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled forward for calls of one kind, whose sizes it checks. `kept`: what the model had
    made and kept of earlier calls as it was compiled, which it may read."""

    kind: CallKind
    options: Options
    function: AOTCompiledFunction
    kept: frozenset[str]

    def takes(self, module: nn.Module, args: Args, kwargs: Kwargs) -> bool:
        """Whether it was compiled for tensors like these; of the same kind of call."""
        return self.function.guard_check(module, *args, **kwargs)

    def to_bytes(self, module: nn.Module) -> bytes:
        """Raises:
        CannotSave: something in it has no form in a file.
        """
        try:
            saved = AOTCompiledFunction.serialize(self.function, _functions_around(module))
            return pickle.dumps((self.kind, dict(self.options), self.kept, saved.serialized_data))
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
            raise CannotSave(f"{type(module).__name__} can't be saved: {error}") from error


def program_from_bytes(data: bytes, module: nn.Module) -> Program:
    """The program of a model like `module`. It runs code that is in `data`.

    Raises:
        CannotLoad: a kernel of it has to be built anew here, and can't be, or a class isn't here.
    """
    names = _function_of(module).__globals__
    try:
        kind, options, kept, function = pickle.loads(data)
        with mode_of(kind):
            loaded = AOTCompiledFunction.deserialize(function, names, _functions_around(module))
    except (AttributeError, ImportError) as error:
        raise CannotLoad(f"what it was saved with isn't in this process: {error}") from error
    except (InvalidCxxCompiler, CppCompileError) as error:
        raise CannotLoad(f"its kernels have to be built anew here, which fails: {error}") from error
    return Program(kind, options, loaded, kept)


def compile_program(
    module: nn.Module, kind: CallKind, args: Args, kwargs: Kwargs, options: Options
) -> Program:
    """Compile `module` for calls like this one.

    Raises:
        CannotSave: it isn't one graph, or isn't cached; with the reason.
    """
    compiled: Any = torch.compile(
        module.forward,
        backend=_backend_that_saves(options),
        fullgraph=True,
        options={"guard_filter_fn": _is_on_own_tensors},
    )
    kept = kept_tensors(module)
    try:
        with mode_of(kind):
            function = compiled.aot_compile((tuple(args), dict(kwargs)))
    except Unsupported as error:
        raise CannotSave(
            f"{type(module).__name__} can't be saved: its forward isn't one graph, and what runs "
            f"between two can't be written down. Dynamo says: {error}"
        ) from error
    return Program(kind, options, function, kept)


def mode_of(kind: CallKind) -> AbstractContextManager[object]:
    """That in which gradients are off at its calls: guards on tensors tell the two apart, by that
    in which they are made."""
    is_inference = kind.modes.is_inference_mode_enabled
    return torch.inference_mode() if is_inference else torch.no_grad()


def _backend_that_saves(options: Options) -> Callable[..., Any]:
    def compile_to_be_saved(gm: fx.GraphModule, inputs: Sequence[Tensor], **_: object) -> object:
        model = cachedit(gm, inputs, options=options)
        if isinstance(model, UncachedModel):
            raise CannotSave(f"there is nothing to save: {model.refusal}")
        return model

    return compile_to_be_saved


def _is_on_own_tensors(guards: Sequence[Any]) -> list[bool]:
    return [
        guard.guard_type in _KEPT and not guard.is_global and not _is_of_the_model(guard.name)
        for guard in guards
    ]


def _is_of_the_model(name: str) -> bool:
    """Whether what is guarded is reached through the forward's `self`."""
    return name.replace("L['self']", "self").split(".")[0].split("[")[0] == "self"


def _functions_around(module: nn.Module) -> dict[str, object]:
    """What decorators have put around a forward lies in its closure, and is found again there."""
    cells = _function_of(module).__closure__ or ()
    return {f"closure {i}": cell.cell_contents for i, cell in enumerate(cells)}


def _function_of(module: nn.Module) -> FunctionType:
    """The code of its forward, which nothing on the instance replaces."""
    function = type(module).forward
    assert isinstance(function, FunctionType)
    return function
