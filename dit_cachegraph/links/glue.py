"""Sees whether the code between two blocks reads what the one returned.

    block i returns | glue: every operator is looked at | block i + 1 is called

A mode of torch's dispatcher sees the operators. What `torch.compile` returned for a block puts the
dispatcher back, when it ends, as it was when it began. So there the mode is taken off at the begin,
by a hook that torch runs then and leaves empty, and is put on when the variables of that call die,
which is after its end. Where Dynamo gave up the code around the blocks, nothing is put back.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import FrameType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

from dit_cachegraph.call_stack import own_compiled_call

_NAME = "dit_cachegraph's mode"  # No variable can be called so.


class Glue(TorchDispatchMode):
    """Looks at the operators between two blocks. `read` are the positions of the outputs that were
    an operand of one since they were returned, `has_read_older` those of the block before."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.has_read_older = False
        self._outputs: list[weakref.ref[Tensor]] = []
        self._older: list[weakref.ref[Tensor]] = []
        self._is_on, self._is_over = False, False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        for operand in tree_leaves((args, kwargs)):
            if isinstance(operand, Tensor):
                read = _behind(operand, self._outputs)
                self.read.update(read)
                if not read and _behind(operand, self._older):
                    self.has_read_older = True
        return func(*args, **kwargs)

    def watch(self, outputs: Sequence[Tensor]) -> None:
        """From now on these, and those before."""
        self._older, self._outputs = self._outputs, [weakref.ref(output) for output in outputs]
        self.read, self.has_read_older = set(), False

    def put_on(self) -> None:
        if not self._is_on and not self._is_over:
            self.__enter__()
            self._is_on = True

    def take_off(self) -> bool:
        """Returns whether it was on."""
        was_on = self._is_on and _get_current_dispatch_mode() is self
        if was_on:
            self.__exit__(None, None, None)
            self._is_on = False
        return was_on

    def begin(self) -> None:
        _watching.set(self)

    def end(self, within: FrameType | None = None) -> None:
        """The call is over. A compiled call, `within` which it is ended, began with the mode as it
        is, and leaves the dispatcher so: then it is taken off when that call's variables die."""
        self._is_over = True
        if self._is_on and within is not None:
            within.f_locals[_NAME] = _AtItsEnd(self.take_off)
        else:
            self.take_off()
        if _watching.get() is self:
            _watching.set(None)


def _behind(operand: Tensor, outputs: Sequence["weakref.ref[Tensor]"]) -> set[int]:
    """The outputs that a tensor is, or else is a view of: two of them may share a storage."""
    alive = {i: output for i, ref in enumerate(outputs) if (output := ref()) is not None}
    same = {i for i, output in alive.items() if output is operand}
    if same or operand.layout is not torch.strided:
        return same
    storage = operand.untyped_storage()._cdata
    return {i for i, output in alive.items() if output.untyped_storage()._cdata == storage}


_watching: ContextVar[Glue | None] = ContextVar("dit_cachegraph_glue", default=None)


def stop_watching() -> None:
    """Of a call that failed, a traceback may keep the glue alive."""
    glue = _watching.get()
    if glue is not None:
        glue.end(within=own_compiled_call())


class _AtItsEnd:
    """Lies in the frame of a compiled call, dies with it, and then does what is left to do."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def __call__(self) -> None:
        """Torch calls what a hook returned: too early, the dispatcher isn't yet as it was."""

    def __del__(self) -> None:
        self._then()


class GlueHook:
    """What torch calls at the begin of each call of one compiled block."""

    def __call__(self) -> Callable[[], None]:
        glue = _watching.get()
        if glue is None:
            return _nothing
        glue.take_off()
        return _AtItsEnd(glue.put_on)


def _nothing() -> None:
    """There is no glue to watch."""


def has_hook(frame: FrameType) -> bool:
    """Whether the compiled call of a block had the hook when it began; it has it from now on."""
    hooks = getattr(frame.f_locals.get("self"), "enter_exit_hooks", None)
    if not isinstance(hooks, list):
        return False
    if any(isinstance(hook, GlueHook) for hook in hooks):
        return True
    hooks.append(GlueHook())
    return False
