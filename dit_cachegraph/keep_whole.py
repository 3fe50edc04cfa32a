"""`keep_whole`: a method that goes by data becomes one operator of the graph.

Experts that take their tokens by `nonzero`, `bincount` or `tolist` work on sizes that depend on
data, and Dynamo breaks the graph there, in every block. Kept whole, the method is one node, which
runs it as eager PyTorch does:

    before   a graph up to `indices.bincount()`, another one after it, and so on in every block
    after    y = kept_whole.experts_route([x, indices], '', [gate, up, down, ...])

The weights come with each call, so that the nodes of two blocks differ in nothing but their inputs,
and blocks share one compiled function. The module is found by its weights: there is no copy of it,
and what is changed on it later holds at once.
"""

import ctypes
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn

from dit_cachegraph.exc import InvalidConfig

Method: TypeAlias = Callable[..., Tensor]
Tensors: TypeAlias = Sequence[Tensor | None]

_NAMESPACE = "kept_whole"
_OPERATORS = torch.ops.kept_whole


def keep_whole(cls: type[nn.Module], method: str, *, fake: Method) -> "KeptWhole":
    """Make a method that Dynamo can't trace one operator of the graph.

    It replaces `cls.method`, for every module of the class and its subclasses, made before or after
    that, until `undo()` of what it returns is called, or the `with` block ends that it was used in.
    Call it before the model is compiled. To keep a method that is kept changes its `fake`, and
    returns the same handle. In eager PyTorch, and with gradients on, the method is what it was.

        with keep_whole(Experts, "route", fake=lambda x, indices: torch.empty_like(x)):
            ...

    The method takes tensors (or None), by position or by name, and returns one tensor that depends
    on these, the module's weights and what else is set on the module. It must not draw random
    numbers, nor write to what it is given. A graph holds for the very modules that it was made of:
    another model of the class is compiled anew.

    Args:
        cls: a class of modules with weights.
        method: the name of a method of it.
        fake: given the same arguments without `self`, as tensors without data, it returns an empty
            tensor of the sizes and the dtype that the method gives: `torch.empty_like(x)`.

    Raises:
        InvalidConfig: `cls` is no class of modules or has no such method, or `fake` is no function.
            At a compiled call: the method gives another size or dtype than `fake`, or writes to
            what it is given. Dynamo passes it on in an error of its own where it shows earlier: the
            method is given what is no tensor, or is of a module that has no weights of its own.
    """
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise InvalidConfig(f"keep_whole: cls must be a subclass of nn.Module, got {cls!r}")
    if not callable(fake):
        raise InvalidConfig(f"keep_whole: fake must be a function, got {fake!r}")
    found = inspect.getattr_static(cls, method, None)
    if not inspect.isfunction(found):
        kind = "no such method" if found is None else f"a {type(found).__name__} of that name"
        raise InvalidConfig(f"keep_whole: {cls.__name__} has {kind}: {method!r}")
    kept = vars(found).get(_NAMESPACE)
    if not isinstance(kept, KeptWhole):
        return KeptWhole(cls, method, found, fake)
    if kept.cls is not cls:
        raise InvalidConfig(f"keep_whole: {cls.__name__} inherits {kept}, which is kept whole")
    kept.fake = fake
    return kept


class KeptWhole:
    """A method that is kept whole, until `undo` is called or the `with` block ends."""

    def __init__(self, cls: type[nn.Module], method: str, real: Method, fake: Method) -> None:
        self.cls, self.method, self.fake = cls, method, fake
        self._real, self._is_inherited = real, method not in vars(cls)
        self._met = WeakSet[nn.Module]()
        self._owners = WeakValueDictionary[tuple[int, ...], nn.Module]()
        self._replacement = _replacement(self, real)
        setattr(cls, method, self._replacement)

    def __str__(self) -> str:
        return f"{self.cls.__name__}.{self.method}"

    def __enter__(self) -> "KeptWhole":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Give the class its own method back; nothing, where that was done or somebody else has
        replaced the method since."""
        if vars(self.cls).get(self.method) is not self._replacement:
            return
        if self._is_inherited:
            delattr(self.cls, self.method)
        else:
            setattr(self.cls, self.method, self._real)

    def meet(self, module: nn.Module) -> None:
        """Remember a module of which a graph is being made, so that it is found by its weights."""
        weights = weights_of(module)
        if not weights:
            raise InvalidConfig(f"keep_whole: {self} is of a module that has no weights")
        if self._by_weights().get(_ids(weights), module) is not module:
            raise InvalidConfig(
                f"keep_whole: {self} is of two modules with the very same weights, so that nobody "
                "could tell them apart; use one module at both places"
            )
        self._met.add(module)

    def run(self, tensors: Tensors, names: str, weights: list[Tensor]) -> Tensor:
        """What the method returns, in memory of its own."""
        method = functools.partial(self._real, self._owner_of(weights))
        given = [tensor for tensor in (*tensors, *weights) if tensor is not None]
        versions = [tensor._version for tensor in given if not tensor.is_inference()]
        result = _called(method, tensors, names)
        if versions != [tensor._version for tensor in given if not tensor.is_inference()]:
            raise InvalidConfig(
                f"keep_whole: {self} writes in place to what it is given, which nobody sees who "
                "looks at the graph; let it write to a copy"
            )
        self._check_fake(result, tensors, names)
        storages = {tensor.untyped_storage().data_ptr() for tensor in given}
        is_view = result.untyped_storage().data_ptr() in storages
        return result.clone() if is_view else result.contiguous()

    def run_fake(self, tensors: Tensors, names: str) -> Tensor:
        """What `fake` returns, as it lies in memory after `run`."""
        return torch.empty_like(
            _called(self.fake, tensors, names), memory_format=torch.contiguous_format
        )

    def _check_fake(self, result: Tensor, tensors: Tensors, names: str) -> None:
        on_meta = [None if tensor is None else tensor.to("meta") for tensor in tensors]
        told, given = (_kind(t) for t in (_called(self.fake, on_meta, names), result))
        if told != given:
            raise InvalidConfig(
                f"keep_whole: {self} returns {given}, and its `fake` {told}: `fake` must tell what "
                "the method gives"
            )

    def _owner_of(self, weights: list[Tensor]) -> nn.Module:
        ids = _ids(weights)
        owner = self._owners.get(ids)
        if owner is None or _ids(weights_of(owner)) != ids:
            self._owners = self._by_weights()
            owner = self._owners.get(ids)
        if owner is None:
            raise InvalidConfig(
                f"keep_whole: {self} was called with weights of no module that it knows "
                "(`torch.func.functional_call`, most likely): set them on the module"
            )
        return owner

    def _by_weights(self) -> WeakValueDictionary[tuple[int, ...], nn.Module]:
        return WeakValueDictionary({_ids(weights_of(module)): module for module in self._met})


def weights_of(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def _replacement(kept: KeptWhole, real: Method) -> Method:
    operator = _operator(kept)

    # Dynamo calls it as it traces, and hands over what it knows: of the module that it is itself,
    # which it guards. To hand over the module takes torch 2.13.
    @torch._dynamo.assume_constant_result
    def meet(module_id: int, others: str) -> bool:
        if others:
            raise InvalidConfig(
                f"keep_whole: {kept} was given {others}, and takes tensors alone; let it read its "
                "numbers off the module"
            )
        kept.meet(ctypes.cast(module_id, ctypes.py_object).value)
        return True

    @functools.wraps(real)
    def call(self: nn.Module, *args: Tensor | None, **kwargs: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or not torch.compiler.is_compiling():
            return real(self, *args, **kwargs)
        given = [*args, *kwargs.values()]
        others = [type(v).__name__ for v in given if v is not None and not isinstance(v, Tensor)]
        meet(id(self), ", ".join(others))
        return operator(given, ",".join(kwargs), weights_of(self))

    vars(call)[_NAMESPACE] = kept
    return call


def _operator(kept: KeptWhole) -> Method:
    """An operator of its own for a method, which calls it."""
    name = next(name for name in _names(kept) if not hasattr(_OPERATORS, name))

    @torch.library.custom_op(f"{_NAMESPACE}::{name}", mutates_args=())
    def operator(tensors: Sequence[Tensor | None], names: str, weights: Sequence[Tensor]) -> Tensor:
        return kept.run(tensors, names, list(weights))

    @operator.register_fake
    def _(tensors: Tensors, names: str, weights: Sequence[Tensor]) -> Tensor:
        return kept.run_fake(tensors, names)

    return operator


def _names(kept: KeptWhole) -> Iterator[str]:
    """First a name that is the same in every process, since compilers keep on disk what they made
    under it; then others, for classes of one name and for what is kept once more."""
    name = f"{kept.cls.__name__}_{kept.method}".lower()
    yield name
    yield from (f"{name}_{i}" for i in itertools.count(2))


def _called(method: Method, tensors: Tensors, names: str) -> Tensor:
    """Call a method with tensors of which the last ones have names, joined by commas."""
    keywords = names.split(",") if names else []
    num_positional = len(tensors) - len(keywords)
    named = dict(zip(keywords, tensors[num_positional:], strict=True))
    result = method(*tensors[:num_positional], **named)
    if not isinstance(result, Tensor):
        raise InvalidConfig(
            f"keep_whole: a method that is kept whole and its `fake` return one tensor, and not "
            f"{type(result).__name__}"
        )
    return result


def _ids(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(map(id, tensors))


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of {list(tensor.shape)}"
