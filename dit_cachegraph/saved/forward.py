"""What a call of a model runs that was compiled ahead: the program for its kind, if any."""

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torch.utils import _pytree as pytree

from dit_cachegraph.call_log import Unasked
from dit_cachegraph.exc import CannotSave
from dit_cachegraph.models import REGISTRY
from dit_cachegraph.saved.call_kind import CallKind, kind_of
from dit_cachegraph.saved.model_parts import WatchedParts, kept_tensors, num_hooks
from dit_cachegraph.targets import is_compiled

if TYPE_CHECKING:
    from dit_cachegraph.saved.program import Args, Kwargs, Program

log = logging.getLogger("dit_cachegraph")
Forward = Callable[..., object]


class SavedForward:
    """In the place of `forward` on what `torch.compile` returned for `module`. `compiled`: what was
    there; it takes the calls that no program was made for."""

    def __init__(self, module: nn.Module, programs: "list[Program]", compiled: Forward) -> None:
        self._module, self._programs, self._compiled = module, programs, compiled
        self._signature = inspect.signature(module.forward)
        self._parts = WatchedParts(module)
        self._told: set[CallKind] = set()
        self._called: set[int] = set()

    def __call__(self, *args: object, **kwargs: object) -> object:
        why = Unasked.now()
        if why.is_disabled or why.stance == "force_eager":
            # Dynamo runs nothing that is compiled then: what was compiled ahead is no exception.
            REGISTRY.of_module(self._module).calls.note_unasked(why)
            return self._compiled(*args, **kwargs)
        change = self._parts.change()
        program = self._program_for(args, kwargs, change)
        if program is None:
            result = self._compiled(*args, **kwargs)
        else:
            if id(program) not in self._called:
                self._make_what_is_kept(program, args, kwargs)
            result = program.function(self._module, *args, **kwargs)
        if change is None and (program is None or id(program) not in self._called):
            self._called.add(id(program))
            self._parts.accept()
        return result

    def _make_what_is_kept(self, program: "Program", args: "Args", kwargs: "Kwargs") -> None:
        """Where the model lacks what it makes and keeps at a call (tables of positions), have it
        make such a call: as it is, and for that alone."""
        lacking = program.kept - kept_tensors(self._module)
        if lacking:
            name, first = type(self._module).__name__, min(lacking)
            log.info("%s runs once uncompiled, to make what it keeps (`%s`)", name, first)
            # Lists and dictionaries of its own: a model may take out of them what it has used.
            args, kwargs = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
            self._module(*args, **kwargs)

    def _program_for(self, args: "Args", kwargs: "Kwargs", change: str | None) -> "Program | None":
        try:
            kind = kind_of(self._signature, args, kwargs)
        except TypeError:
            return None  # The model says what is wrong with them.
        if change is not None:
            self._tell_once(kind, f"the model has changed since: {change}")
            return None
        for program in self._programs:
            if program.kind == kind and program.takes(self._module, args, kwargs):
                return program
        self._tell_once(kind, self._why_none(kind))
        return None

    def _why_none(self, kind: CallKind) -> str:
        differences = [kind.difference(program.kind) for program in self._programs]
        told = next((difference for difference in differences if difference), None)
        return told or "its tensors have other sizes, dtypes, devices or strides"

    def _tell_once(self, kind: CallKind, why: str) -> None:
        """Say for each kind of call that it is compiled afresh."""
        if kind not in self._told:
            self._told.add(kind)
            name = type(self._module).__name__
            log.warning("%s: no saved program takes this call, which is compiled: %s", name, why)


def check_plain(module: nn.Module) -> None:
    """Raises CannotSave where more than the module's own forward would run at its calls."""
    name = type(module).__name__
    if is_compiled(module):
        raise CannotSave(f"{name} is compiled already: give it as it was before")
    if num_hooks(module):
        raise CannotSave(
            f"{name} has hooks or a forward of its own (offloading, another library's cache), "
            "which a saved call wouldn't run: put them on after this"
        )
