"""The calls that a model gets while somebody draws: one of each kind and each form of its tensors.

draw(pipe)    (1, 64, 16) step 1, (1, 64, 16) step 2, ..., (1, 256, 16) step 1, ...
recorded      (1, 64, 16),                                  (1, 256, 16)
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dit_cachegraph.exc import CannotSave
from dit_cachegraph.saved.call_kind import CallKind, kind_of
from dit_cachegraph.saved.model_parts import WatchedParts

MAX_RECORDED = 64

Sizes = tuple[torch.Size, ...]


class _Form(NamedTuple):
    """What Dynamo asks of a tensor before it lets a graph take it, but for its class."""

    size: torch.Size
    stride: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device


_Forms = tuple[_Form, ...]


class RecordedCall(NamedTuple):
    """A call of a model; `sizes` are those of its tensors, in order."""

    kind: CallKind
    sizes: Sizes
    args: tuple[object, ...]
    kwargs: dict[str, object]


def record_calls(
    modules: Sequence[nn.Module], draw: Callable[[], object]
) -> list[list[RecordedCall]]:
    """What each module is called with while `draw` runs, without those that differ in values of
    tensors alone.

    Raises:
        CannotSave: gradients or autocast are on at a call, each call has other numbers, an argument
            is of a class whose values can't be told apart, or a module is changed meanwhile.
    """
    recorders = [_Recorder(module) for module in modules]
    try:
        draw()
        for recorder in recorders:
            recorder.check_unchanged()
    finally:
        for recorder in recorders:
            recorder.stop()
    return [list(recorder.calls.values()) for recorder in recorders]


class _Recorder:
    """Notes the calls of a module, which has to stay as it was given but for what a call itself
    makes of it: `load` compares with that."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: dict[tuple[CallKind, _Forms], RecordedCall] = {}
        self._module = module
        self._hooks = (
            module.register_forward_pre_hook(self._note, with_kwargs=True),
            module.register_forward_hook(self._accept),
        )
        self._parts = WatchedParts(module)  # With these hooks.

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def check_unchanged(self) -> None:
        """Raises CannotSave where somebody else has changed the module."""
        if (change := self._parts.change()) is not None:
            raise CannotSave(
                f"{type(self._module).__name__} was changed while `draw` ran: {change}; what is "
                "saved is for the model as it was given, so change it before `precompile`; where "
                "its pipeline changes it at each call, it can't be saved"
            )

    def _accept(self, *_: object) -> None:
        self._parts.accept()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.check_unchanged()
        kind = kind_of(inspect.signature(module.forward), args, kwargs)
        if kind.modes.is_grad_enabled or kind.modes.is_autocast_enabled:
            raise CannotSave(
                f"{type(module).__name__} was called with gradients or autocast on: draw under "
                "`torch.no_grad()`, with the model in the dtype that it is to run in"
            )
        if kind.untold is not None:
            path, argument = kind.untold
            raise CannotSave(
                f"{type(module).__name__} was called with {argument} as {path}, whose values can't "
                "be told apart, so that a saved call might be taken for another: give it as "
                "tensors, numbers, text, or a dataclass, list or dictionary of them"
            )
        forms = tuple(_form_of(tensor) for tensor in _tensors_of((args, kwargs)))
        sizes = tuple(form.size for form in forms)
        # Lists and dictionaries of its own: a model may take out of them what it has used.
        args, kwargs = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
        self.calls.setdefault((kind, forms), RecordedCall(kind, sizes, args, kwargs))
        if len(self.calls) > MAX_RECORDED:
            first, second, *_ = self.calls.values()
            why = second.kind.difference(first.kind) or "sizes or strides differ"
            raise CannotSave(
                f"{type(module).__name__} was called in more than {MAX_RECORDED} ways, and each "
                f"takes a program of its own: {why}"
            )


def with_open_sizes(call: RecordedCall, others: Sequence[RecordedCall]) -> RecordedCall:
    """`call` with tensors whose sizes are marked as open where those of `others`, of its kind,
    differ: one graph is then made for all of them, if the model allows. A size of 1 is never open,
    since a graph may go by it."""
    alike = [other for other in others if _may_share(call, other)]
    flat, spec = pytree.tree_flatten((call.args, call.kwargs))
    copies: dict[int, Tensor] = {}
    number = 0
    for i, value in enumerate(flat):
        if isinstance(value, Tensor):
            differing = _differing([other.sizes[number] for other in alike])
            flat[i] = copies.setdefault(
                id(value), _marked(value, differing) if differing else value
            )
            number += 1
    args, kwargs = pytree.tree_unflatten(flat, spec)
    return call._replace(args=args, kwargs=kwargs)


def _may_share(call: RecordedCall, other: RecordedCall) -> bool:
    return call.kind == other.kind and all(
        len(a) == len(b) and all((x < 2) == (y < 2) for x, y in zip(a, b, strict=True))
        for a, b in zip(call.sizes, other.sizes, strict=True)
    )


def _differing(sizes: Sequence[torch.Size]) -> list[int]:
    return [dim for dim, found in enumerate(zip(*sizes, strict=True)) if len(set(found)) > 1]


def _marked(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Another object of the same storage, since a mark lies on the object. A copy would lie
    otherwise where that is expanded or a slice, and what is made for it would take no such call."""
    other = tensor.data
    for dim in dims:
        torch._dynamo.maybe_mark_dynamic(other, dim)
    return other


def _form_of(tensor: Tensor) -> _Form:
    is_strided = tensor.layout is torch.strided
    stride = tensor.stride() if is_strided else None
    return _Form(tensor.shape, stride, tensor.dtype, tensor.device)


def _tensors_of(value: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
